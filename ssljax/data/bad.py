"""Bad examples: counted, named with their reason in a file, and too many of them stop the run."""

import collections
import json
import pathlib

from ssljax.errors import UserError

AFTER = 300  # examples read before a share of them means anything
TOLD = 10  # bad examples that get a line of their own in the log


class BadExamples:
    """What a run has passed of images that could not be shown. Each is masked (valid=False) in its own place; none moves another.

    path: a file of JSON lines {"id", "file", "reason"}, one for each bad example however often it comes; None: no file. It is appended
    to, and what it lists already (an earlier start of the same run) is not listed again. share: more than this of what was read,
    counted from AFTER examples on, is a UserError that names the list.
    """

    def __init__(self, path=None, share=1.0):
        self.count, self.read, self.share = 0, 0, share
        self.path = None if path is None else pathlib.Path(path)
        self.listed = set()
        self._news, self._told = collections.deque(), 0
        if self.path is not None and self.path.exists():
            for line in self.path.read_text(encoding="utf-8").splitlines():
                try:
                    self.listed.add(json.loads(line)["id"])
                except (ValueError, KeyError, TypeError):
                    continue  # a line cut short by a kill

    def update(self, ids, read, tell):
        """After a batch: ids of its bad examples; read: how many examples it holds; tell: id -> (file, reason).

        Raises UserError when the share is exceeded or the list cannot be written.
        """
        self.count += len(ids)
        self.read += read
        fresh = [int(i) for i in dict.fromkeys(ids) if int(i) not in self.listed]
        rows = [dict(zip(("id", "file", "reason"), (i, *tell(i)), strict=True)) for i in fresh]
        self.listed.update(fresh)
        self._news.extend(rows)
        if rows and self.path is not None:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(row) + "\n" for row in rows))
            except OSError as error:
                raise UserError(f"the list of bad examples cannot be written: {self.path}: {error}") from None
        if self.read >= AFTER and self.count > self.share * self.read:
            where = f"the list, with reasons, is {self.path}" if self.path else f"the first: {self._news[0] if self._news else fresh}"
            raise UserError(
                f"{self.count} of {self.read} examples could not be shown, more than config.data.bad_share={self.share:g}: {where}. "
                "Mend or remove those files, or raise config.data.bad_share"
            )

    def news(self):
        """Lines for the log about bad examples not told yet, the first ten by name. From any thread."""
        lines = []
        while self._news:
            row = self._news.popleft()
            self._told += 1
            if self._told <= TOLD:
                lines.append(f"masked: {row['file']}: {row['reason']}")
            elif self._told == TOLD + 1:
                lines.append(f"masked: further bad examples are in {self.path or 'no list: give a workdir'}")
        return lines

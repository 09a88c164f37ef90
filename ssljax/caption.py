"""Captions for pictures, by a checkpoint that writes them (cappa, coca, virtex, simvlm, siglip2).

python -m ssljax.caption --checkpoint runs/cappa                              # pictures of its own test split
python -m ssljax.caption --checkpoint runs/cappa --data folder:/my/pictures --beams 4 --results captions.jsonl
"""

import json
import sys

from absl import flags

from ssljax import cli
from ssljax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("checkpoint", "", "workdir of train.py", flag_values=FLAGS)
flags.DEFINE_string("data", "", "another source than the one trained on, e.g. folder:PATH", flag_values=FLAGS)
flags.DEFINE_integer("count", 16, "pictures, from the first on; 0: all", flag_values=FLAGS)
flags.DEFINE_integer("beams", 1, "texts kept at every word; 1: greedy", flag_values=FLAGS)
flags.DEFINE_float("length_penalty", 1.0, "beams: log probability / words ** this; below 1 prefers short texts", flag_values=FLAGS)
flags.DEFINE_string("results", "", 'write {"id": ..., "caption": ...} lines to this .jsonl file', flag_values=FLAGS)


def captions(directory, *, data="", count=16, beams=1, length_penalty=1.0):
    """-> [(id of the picture in its source, caption), ...]. Raises UserError for a checkpoint that writes none."""
    from ssljax import evaluate, inputs
    from ssljax.data import pipeline

    restored = evaluate.restore(directory, data=data)
    built, run, state, tokenizer, source = (restored[k] for k in ("built", "program", "state", "tokenizer", "test"))
    spelling = lambda: inputs.captions_of(built, restored["train"])  # noqa: E731
    write = inputs.caption_writer(built, run, state, tokenizer, spelling, beams=beams, length_penalty=length_penalty)
    if write is None:
        name = restored["config"].method.name
        raise UserError(f"--checkpoint {directory}: the method {name} writes no captions; cappa, coca, virtex, simvlm and siglip2 do")
    rows = []
    for batch in pipeline.eval_batches(source, batch=64, image_size=built.data.image_size, ratio=built.data.resize_ratio):
        keep = batch["valid"]
        rows += zip(batch["id"][keep].tolist(), write(batch["image"][keep]), strict=True)
        if count and len(rows) >= count:
            return rows[:count]
    return rows


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    if not FLAGS.checkpoint:
        raise UserError("--checkpoint is missing: the --workdir of a run of train.py")
    rows = captions(FLAGS.checkpoint, data=FLAGS.data, count=FLAGS.count, beams=FLAGS.beams, length_penalty=FLAGS.length_penalty)
    for number, text in rows:
        print(f"{number:8}  {text}")
    if FLAGS.results:
        with open(FLAGS.results, "w", encoding="utf-8") as file:
            file.writelines(json.dumps({"id": number, "caption": text}, ensure_ascii=False) + "\n" for number, text in rows)
        print(f"wrote {FLAGS.results}", file=sys.stderr)


if __name__ == "__main__":
    cli.command(main)

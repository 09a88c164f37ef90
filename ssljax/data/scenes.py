"""The TFDS builder `scenes`: the arrays of `scenes_recipe`, written once as ArrayRecord so that they are read like any other data set."""

import contextlib
import io
import os
import pathlib

import tensorflow_datasets as tfds
from absl import logging

from ssljax.data import scenes_recipe as recipe


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Configs `plain` and `photo`; see `scenes_recipe`. Example i of a split is row i of `scenes_recipe.make`."""

    VERSION = tfds.core.Version(recipe.VERSION)
    BUILDER_CONFIGS = [tfds.core.BuilderConfig(name=name) for name in recipe.CLASSES]

    def _info(self):
        config = self.builder_config.name
        features = {
            "image": tfds.features.Image(shape=(recipe.CANVAS, recipe.CANVAS, 3), encoding_format="png"),
            **{name: tfds.features.ClassLabel(names=names) for name, names in recipe.CLASSES[config].items()},
        }
        if config == "photo":
            features |= {"caption": tfds.features.Text(), "description": tfds.features.Text()}
        return tfds.core.DatasetInfo(
            builder=self,
            description="Handwritten digits in small scenes, composed from what scikit-learn and scikit-image ship.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # keeps the recipe's order, so an id means the same example here and in the arrays
        )

    def _split_generators(self, dl_manager):
        return {split: self._generate_examples(split) for split in recipe.COUNTS}

    def _generate_examples(self, split):
        arrays = recipe.make(self.builder_config.name, split)
        fields = {name: arrays[name] for name in self.info.features}
        for i in range(len(fields["image"])):
            yield i, {name: values[i] for name, values in fields.items()}


def prepare(config, data_dir):
    """Writes scenes/config under data_dir unless it is there; returns the directory of its version.

    Safe when many processes start at once: one writes (into a temporary directory that TFDS renames when complete), the others wait
    for its lock. On file systems without locks the slower writer finds the finished directory and uses it.
    """
    directory = pathlib.Path(data_dir) / "scenes" / config / recipe.VERSION
    if (directory / "dataset_info.json").exists():
        return directory
    directory.parent.mkdir(parents=True, exist_ok=True)
    with _lock(directory.parent / "prepare.lock"):
        if not (directory / "dataset_info.json").exists():
            builder = Scenes(config=config, data_dir=os.fspath(data_dir), file_format="array_record")
            logging.info("preparing %s", directory)
            tfds.disable_progress_bar()
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # TFDS announces a download; there is none
                    builder.download_and_prepare()
            except Exception:
                if not (directory / "dataset_info.json").exists():  # else another process, past our lock, was first
                    raise
    return directory


@contextlib.contextmanager
def _lock(path):
    try:
        import fcntl
    except ImportError:  # no POSIX locks: TFDS's rename is all the protection there is
        yield
        return
    with open(path, "w") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

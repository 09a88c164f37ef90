"""Pictures whose every pixel has a truth, for the dense evaluators: embedded scenes, and prepared TFDS sets by name. As arrays.

kind     embedded        TFDS features, under any of these names                            arrays
masks    scenes/masks    image; annotation, segmentation_mask, mask (ADE20K's layout)       image (N, S, S, 3), mask int32 (N, S, S)
depth    scenes/layers   image; depth, depth_map (NYU Depth v2's)                           image, depth float32 (N, S, S), metres
video    scenes/moving   video with frames and segmentations (DAVIS's)                      video (N, T, S, S, 3), mask int32 (N, T, S, S)

Of a TFDS set without a test split the validation split is taken for it. Pictures are resized to S x S, bilinear with antialiasing; truths
by the nearest pixel. A mask's value 255 and a depth of 0 count nowhere.
"""

import numpy as np

from ssljax.errors import UserError

EMBEDDED = {"masks": ("scenes/masks", "masks"), "depth": ("scenes/layers", "layers"), "video": ("scenes/moving", "moving")}
NAMES = {"masks": ("annotation", "segmentation_mask", "mask"), "depth": ("depth", "depth_map"), "video": ("segmentations",)}
MOST = {"masks": {"train": 1024, "test": 512}, "depth": {"train": 1024, "test": 512}, "video": {"train": 64, "test": 64}}
NOWHERE = 255  # of a mask


def load(name, kind, split, size, most=0):
    """name: scenes/masks, scenes/layers, scenes/moving or tfds:NAME. kind: masks, depth or video. split: train or test. size: S.
    most: records; 0: MOST. -> dict of arrays as above. Raises UserError for a name or a set that does not give them."""
    most = most or MOST[kind][split]
    if name == EMBEDDED[kind][0]:
        from ssljax.data import scenes_recipe

        found = getattr(scenes_recipe, EMBEDDED[kind][1])(split, most)
        return {key: _resized(value, size, key in ("mask", "depth")) for key, value in found.items()}
    if not name.startswith("tfds:"):
        raise UserError(f"pictures with {kind} {name!r}: expected {EMBEDDED[kind][0]} or tfds:NAME")
    return _tfds(name, kind, split, size, most)


def _tfds(name, kind, split, size, most):
    import tensorflow_datasets as tfds

    from ssljax.data import sources

    try:
        builder = tfds.builder(name.removeprefix("tfds:"), data_dir=sources.data_dir())
        split = "validation" if split == "test" and "test" not in builder.info.splits else split  # as NYU Depth v2 and DAVIS name it
        records = builder.as_data_source(split=split)
        count = min(len(records), most)
    except Exception as error:  # of TFDS, one for each way a set can be absent
        raise UserError(f"pictures with {kind} {name!r}, split {split!r}: {type(error).__name__}: {str(error).splitlines()[0]}") from None
    key = "depth" if kind == "depth" else "mask"
    out = {"video" if kind == "video" else "image": [], key: []}
    for i in range(count):
        record = records[i]
        record = {**record, **record["video"]} if isinstance(record.get("video"), dict) else record
        truth = next((record[k] for k in NAMES[kind] if k in record), None)
        if truth is None:
            raise UserError(f"pictures with {kind} {name!r}: a record needs {' or '.join(NAMES[kind])}, it has {', '.join(record)}")
        pictures = np.stack(record["frames"]) if kind == "video" else np.asarray(record["image"])
        truth = np.stack(truth) if kind == "video" else np.asarray(truth)
        truth = truth[..., 0] if truth.ndim > pictures.ndim - 1 else truth  # a last axis of one channel
        out["video" if kind == "video" else "image"].append(_resized(pictures[None], size, False)[0])
        out[key].append(_resized(truth[None], size, True)[0].astype(np.float32 if kind == "depth" else np.int32))
    if kind == "video":  # of one length, the shortest's
        frames = min(map(len, out["video"]))
        out = {k: [x[:frames] for x in v] for k, v in out.items()}
    return {k: np.stack(v) for k, v in out.items()}


def _resized(array, size, truth):
    """Pictures uint8 (..., H, W, 3), or truths (..., H, W), to size x size."""
    from PIL import Image

    height, width = array.shape[-2:] if truth else array.shape[-3:-1]
    if (height, width) == (size, size):
        return array
    if truth:
        rows, columns = (((np.arange(size) + 0.5) * side / size).astype(int) for side in (height, width))
        return array[..., rows[:, None], columns]
    flat = array.reshape(-1, height, width, 3)
    small = [np.asarray(Image.fromarray(x).resize((size, size), Image.Resampling.BILINEAR)) for x in flat]
    return np.stack(small).reshape(*array.shape[:-3], size, size, 3)

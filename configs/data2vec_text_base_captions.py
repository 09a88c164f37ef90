"""data2vec on text, base, 1 M steps of 256 (Baevski et al. 2022, section 4.3), here on captions.

python -m ssljax.train --config configs/data2vec_text_base_captions.py --workdir gs://BUCKET/data2vec_text

Paper: 83.2 on GLUE's MNLI after books and Wikipedia.
Plan: v5e:4x4, data=16: 5.1 of 16 GiB a chip, at most 8,016 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax.models import text


def get_config(arg=""):
    a = c.parse(arg, batch=256, steps=1_000_000)
    tower = text.size("B", vocab_size=30522, length=512, norm="post", first_norm=True, last_norm="none", pool="first", dtype="bfloat16")
    return c.make(
        steps=a.steps,
        batch=a.batch,
        method=dict(name="data2vec_text", text=tower),
        data=dict(
            source="tfds:coco_captions", caption="caption", tokenizer="words:30522", image_size=32,
            features="n=64,height=40-60,width=40-60,words=3-12",
        ),
        augment={"views": dict(count=1, size=32)},
        optim=dict(
            name="adamw", b1=0.9, b2=0.98, clip_norm=1.0, weight_decay=0.01,
            lr=dict(kind="linear", peak=2e-4, warmup_steps=10_000),
        ),
        log=dict(every=100),
        checkpoint=dict(every=5000),
    )  # fmt: skip

"""What the configs of pairs at the papers' scale share: pictures of the web with captions, how many are seen, how often a run saves.

def get_config(arg=""):
    a = c.parse(arg, batch=4096, examples=400_000_000)
    return webimages.make(a, method=dict(name="filip", encoder=webimages.VIT_B16, text=webimages.TEXT), optim=webimages.ADAMW)

The papers' pairs are mostly not public: name a source with captions, --config.data.source=folder:PATH or tar:GLOB, and CLIP's tokenizer
where its merges file is at hand: --config.data.tokenizer=clip:PATH --config.method.text.vocab_size=49408.
"""

from ssljax import config as c
from ssljax.models import text, vit

VIT_B16 = vit.size("B/16", dtype="bfloat16", remat="dots")
TEXT = text.size("B", width=512, heads=8, mlp_dim=2048, vocab_size=32_000, length=77, dtype="bfloat16", remat="dots")
ADAMW = dict(name="adamw", b1=0.9, b2=0.98, eps=1e-6, lr=dict(kind="cosine", peak=5e-4, warmup_steps=2000), weight_decay=0.2)
AUGMENTED = dict(count=2, size=224, scale=(0.08, 1.0), brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, grey=0.2, blur=(0.5,))


def make(a, *, method, optim=None, data=None, augment=None, **rest):
    """The ConfigDict of `a.examples` pairs at batch `a.batch`. data: fields of its section; augment: groups beside the one light view."""
    return c.make(
        steps=a.examples // a.batch,
        batch=a.batch,
        method=method,
        data=dict(
            source="tfds:coco_captions", caption="caption", tokenizer="words:32000", image_size=224,
            mean=(0.48145466, 0.4578275, 0.40821073), std=(0.26862954, 0.26130258, 0.27577711),
            features="n=64,height=200-400,width=200-400,words=3-12",
        ) | (data or {}),
        augment={"views": dict(count=1, size=224, scale=(0.5, 1.0), flip=0.0)} | (augment or {}),
        optim=optim or ADAMW,
        log=dict(every=100),
        checkpoint=dict(every=5000),
        **rest,
    )  # fmt: skip

"""K-Lite, ViT-B/32: UniCL or CLIP on captions and prompts enriched from a dictionary (Shen et al. 2022, arXiv 2204.09222, section 4).

python -m ssljax.train --config configs/klite_vitb32_webimages.py --config.data.source=folder:PATH --config.data.knowledge=wiktionary.json \
    --workdir gs://BUCKET/klite

Paper: better zero-shot than UniCL and CLIP on concepts that a dictionary explains, of the same pairs. The dictionary is yours to bring: a
JSON file {word: what it means}, such as Wiktionary's.
Plan: v5e:8x8, data=64: 4.5 of 16 GiB a chip, at most 278,759 images/s (HBM).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=4096, examples=480_000_000)
    encoder = webimages.VIT_B16 | dict(patch_size=32, out=512)
    text = webimages.TEXT | dict(causal=True, pool="eot", out=512)
    return webimages.make(a, method=dict(name="clip", encoder=encoder, text=text))

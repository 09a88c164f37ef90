"""SimVLM base (Wang et al. 2021, section 4.1).

python -m ssljax.train --config configs/simvlm_vitb16_webimages.py --config.data.source=folder:PATH --workdir gs://BUCKET/simvlm

Paper: 143.3 CIDEr on COCO, fine-tuned, of its largest model on ALIGN's pairs and C4.
Plan: v5e:8x8, data=64: 8.2 of 16 GiB a chip, at most 89,365 images/s (bfloat16 matrix products).
"""

from ssljax import config as c
from ssljax import webimages


def get_config(arg=""):
    a = c.parse(arg, batch=4096, examples=4_096_000_000)
    encoder = webimages.VIT_B16 | dict(class_token=False, pool="gap")
    text = webimages.TEXT | dict(cross=True, memory_width=768, length=64, pool="last")
    return webimages.make(a, method=dict(name="simvlm", encoder=encoder, text=text))

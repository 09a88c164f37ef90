"""CoCa on scenes/photo: contrast and captions, minutes on two CPU cores.

python -m ssljax.train --config configs/coca_vit_scenes.py --workdir runs/coca

Expect zero-shot colour >= 0.85, photograph >= 0.45; retrieval R@1 among 200 >= 0.15 both ways.
"""

from ssljax import embedded

FAMILY = "image-text"
LEARNING = ("data=photo",)


def get_config(arg=""):
    a = embedded.parse(arg, steps=600, batch=64)
    queries = dict(pool="queries", queries=9, query_width=64, query_heads=4, last_norm="pooled", class_token=False, out=64)
    text = dict(embedded.TEXT, causal=True, class_token=True, last_norm="pooled", out=64)
    decoder = dict(name="caption_decoder", vocab_size=2048, width=64, depth=2, heads=4, mlp_dim=128, cross_mlp_dim=128)
    method = dict(name="coca", encoder=dict(embedded.VIT, **queries), text=text, decoder=decoder)
    return embedded.make_pairs(a, method=method, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50)))

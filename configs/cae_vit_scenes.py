"""CAE on scenes/photo, on the words of a discrete VAE: minutes on two CPU cores.

python -m ssljax.train --config configs/cae_vit_scenes.py --config.method.tokenizer=runs/dvae --workdir runs/cae

Expect accuracy of the masked words >= 3 x chance, kNN or linear >= 0.02 above random.
"""

from ssljax import embedded

FAMILY = "masked"
LEARNING = ("data=photo",)
FIRST = {"tokenizer": "dvae_resnet_scenes.py:data=photo"}


def get_config(arg=""):
    a = embedded.parse(arg, steps=900, batch=64)
    encoder = dict(embedded.VIT, position="sincos_mae", pool="gap")
    views = dict(count=1, brightness=0.0, contrast=0.0, saturation=0.0, hue=0.0, grey=0.0)
    method = dict(
        name="cae", encoder=encoder, least=4, decoder_depth=1, regressor=dict(name="latent_regressor", depth=2, heads=4, mlp_dim=192)
    )
    return embedded.make(a, method=method, views=views, optim=dict(lr=dict(kind="cosine", peak=1e-3, warmup_steps=50), weight_decay=0.05))

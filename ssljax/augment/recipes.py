"""The papers' augmentations by name: `augment=recipes.make("byol")` in a config, `recipes.make("dino", size=32, crops=4)` for another size.

`sigma` of a group is in pixels of a 224-pixel view; papers that blur 96-pixel crops in pixels of the crop are translated here.
Crops are resized bilinearly (antialiased); DINO and MAE resized bicubically.
"""

from ssljax.errors import UserError

_STRONG = dict(brightness=0.8, contrast=0.8, saturation=0.8, hue=0.2, jitter=0.8, grey=0.2)
_MILD = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, jitter=0.8, grey=0.2)
_BLUR = dict(sigma=(0.1, 2.0), kernel=23.0)
_LOCAL = 96 / 224  # side of the small crops of SwAV and DINO over that of the large ones
_LOCAL_BLUR = dict(sigma=(0.1 / _LOCAL, 2.0 / _LOCAL), kernel=23.0 / _LOCAL)


def make(name, size=224, *, crops=None, **changes):
    """-> {group: fields of augment.Group}, a fresh dict. Raises UserError for an unknown name.

    size: side of the (large) views in pixels. crops: number of small crops, for swav (6) and dino (8). changes: fields of "views"
    that take the place of the paper's.
    """
    if name not in RECIPES:
        raise UserError(f"augment=recipes.make({name!r}): no such recipe; there are: {', '.join(RECIPES)}")
    groups = RECIPES[name](size)
    if crops is not None:
        if "crops" not in groups:
            raise UserError(f"augment=recipes.make({name!r}, crops={crops}): this recipe has no small crops; swav and dino do")
        groups["crops"]["count"] = crops
        if not crops:
            del groups["crops"]
    groups["views"].update(changes)
    return groups


def simclr(size):
    """Chen et al. 2020 (arXiv 2002.05709), appendix A: crop, flip, colour distortion of strength 1, blur with half probability."""
    return {"views": dict(count=2, size=size, scale=(0.08, 1.0), blur=(0.5,), **_STRONG, **_BLUR)}


def moco_v2(size):
    """Chen et al. 2020b (arXiv 2003.04297), section 3, and the published code's --aug-plus."""
    colour = dict(brightness=0.4, contrast=0.4, saturation=0.4, hue=0.1, jitter=0.8, grey=0.2)
    return {"views": dict(count=2, size=size, scale=(0.2, 1.0), blur=(0.5,), **colour, **_BLUR)}


def byol(size):
    """Grill et al. 2020 (arXiv 2006.07733), appendix B and table 6: the two views differ in blur and solarize."""
    return {"views": dict(count=2, size=size, scale=(0.08, 1.0), blur=(1.0, 0.1), solarize=(0.0, 0.2), **_MILD, **_BLUR)}


def swav(size):
    """Caron et al. 2020 (arXiv 2006.09882), section 4.1 and appendix A: 2 x 224 + 6 x 96, SimCLR's colours."""
    return {
        "views": dict(count=2, size=size, scale=(0.14, 1.0), blur=(0.5,), **_STRONG, **_BLUR),
        "crops": dict(count=6, size=round(size * _LOCAL), scale=(0.05, 0.14), blur=(0.5,), **_STRONG, **_LOCAL_BLUR),
    }


def dino(size):
    """Caron et al. 2021 (arXiv 2104.14294), section 3.2 and appendix E, and the published ViT-S/16 run's scales: BYOL's colours on
    2 x 224, and 8 x 96 with blur at half probability. The code's default scales are (0.4, 1) and (0.05, 0.4).
    """
    return {
        "views": dict(count=2, size=size, scale=(0.25, 1.0), blur=(1.0, 0.1), solarize=(0.0, 0.2), **_MILD, **_BLUR),
        "crops": dict(count=8, size=round(size * _LOCAL), scale=(0.05, 0.25), blur=(0.5,), **_MILD, **_LOCAL_BLUR),
    }


def mae(size):
    """He et al. 2021 (arXiv 2111.06377), appendix A.1, table 8: crop and flip, no colour."""
    return {"views": dict(count=1, size=size, scale=(0.2, 1.0))}


def supervised(size):
    """Touvron et al. 2021 (DeiT, arXiv 2012.12877), table 9: RandAugment 9 / 0.5 under timm's law, random erasing 0.25 with noise.

    Its mixup 0.8 and CutMix 1.0 are `mixing.mixup_or_cutmix`; its repeated augmentation is the loader's.
    """
    erasing = dict(erase=(0.25,), erase_noise=True, erase_scale=(0.02, 1 / 3), erase_ratio=(0.3, 10 / 3))
    return {"views": dict(count=1, size=size, scale=(0.08, 1.0), rand_augment=(2, 9), rand_augment_law="timm", **erasing)}


RECIPES = {f.__name__: f for f in (simclr, moco_v2, byol, swav, dino, mae, supervised)}

"""What a model costs, on paper: parameters, and the FLOPs of one forward pass of one example.

FLOPs are those of matrix products and convolutions, a multiply-add counting 2; norms, activations and softmax are left out, as is usual.
"""

import jax

from ssljax import models, trees
from ssljax.errors import UserError


def parameters(module):
    """Number of parameters (int), without batch statistics."""
    args, kwargs = module.example()
    return trees.size(jax.eval_shape(lambda: models.init(module, jax.random.PRNGKey(0), *args, train=False, **kwargs)[0]))


def flops(module, size=None, tokens=None):
    """FLOPs (int) of one image of `size` pixels a side (default: the model's image_size), or of one text of the tower's length.

    tokens: patches that are encoded (a masked encoder sees fewer); default: all. Raises UserError for a model that has no formula."""
    name = type(module).__name__
    if name not in FORMULAS:
        raise UserError(f"{name} has no formula of its FLOPs; there are {', '.join(FORMULAS)}")
    return FORMULAS[name](module, size, tokens)


def _dense(tokens, *widths):
    return sum(2 * tokens * a * b for a, b in zip(widths, widths[1:], strict=False))


def _block(tokens, width, mlp_dim, gated=False, attended=None):
    """Of a transformer block: query, key, value, output, the two products of attention, the MLP."""
    attention = 2 * _dense(tokens, attended or tokens, width)
    return 4 * _dense(tokens, width, width) + attention + (3 if gated else 2) * _dense(tokens, width, mlp_dim)


def _vit(m, size, tokens):
    size = size or m.image_size
    stride = tuple(m.stride) or (m.patch_size,) * 2
    sides = tuple(n * s for n, s in zip(m.table, stride, strict=True)) if m.table else (size, size)
    patches = 1
    for side, step in zip(sides, stride, strict=True):
        patches *= side // step
    patches *= m.frames // m.tubelet if m.tubelet > 1 else 1
    n = (tokens or patches) + m.class_token + m.distill_token + m.registers
    total = _dense(patches, m.patch_size**2 * m.channels * m.tubelet, m.width) + m.depth * _block(n, m.width, m.mlp_dim, m.gated)
    if m.pool == "map":
        total += (
            2 * _dense(n, m.width, m.width)
            + 2 * _dense(1, m.width, m.width)
            + 2 * _dense(1, n, m.width)
            + 2 * _dense(1, m.width, m.mlp_dim)
        )
    if m.pool == "queries":
        q, w = m.queries, m.query_width
        total += 2 * _dense(n, m.width, w) + 2 * _dense(q, w, w) + 2 * _dense(q, n, w)
    pooled = {"cls_gap": 2 * m.width, "queries": m.query_width}.get(m.pool, m.width)
    return total + _dense(1, pooled, m.out) + (_dense(1, m.width, m.width) if m.pooler else 0)


def _text(m, size, tokens):
    n = (tokens or m.length) + m.class_token
    return m.depth * _block(n, m.width, m.mlp_dim, m.gated) + _dense(1, m.width, m.out) + (_dense(1, m.width, m.width) if m.pooler else 0)


def _resnet(m, size, tokens):
    from ssljax.models.resnet import STEMS

    size = size or 224
    kernel, stride = STEMS[m.stem]
    stem = m.stem_width or m.width
    side = -(-size // stride)
    total = _dense(side**2, kernel**2 * 3, stem)
    side = -(-side // 2) if m.stem == "imagenet" else side
    widths, channels = m.widths or tuple(m.width * 2**i * (4 if m.bottleneck else 1) for i in range(len(m.stages))), stem
    for stage, (blocks, out) in enumerate(zip(m.stages, widths, strict=True)):
        for block in range(blocks):
            step = 1 if block else 2 if stage else m.first_stride
            before, side = side, -(-side // step)
            if channels != out or step != 1:
                total += _dense(side**2, channels, out)
            if m.bottleneck:
                inner = out // m.expansion
                first = side if m.stride_first else before
                total += _dense(first**2, channels, inner) + _dense(side**2, 9 * inner // m.groups, inner) + _dense(side**2, inner, out)
            else:
                total += _dense(side**2, 9 * channels, out) + _dense(side**2, 9 * out, out)
            channels = out
    return total + _dense(1, channels, m.out)


def _convnext(m, size, tokens):
    side = (size or m.image_size) // m.patch_size
    total = _dense(side**2, m.patch_size**2 * m.channels, m.widths[0])
    for i, (blocks, width) in enumerate(zip(m.stages, m.widths, strict=True)):
        if i:
            side //= 2
            total += _dense(side**2, 4 * m.widths[i - 1], width)
        total += blocks * (_dense(side**2, m.kernel**2, width) + 2 * _dense(side**2, width, 4 * width))
    return total + _dense(1, m.widths[-1], m.out)


def _swin(m, size, tokens):
    side = -(-(size or m.image_size) // m.patch_size)
    total, width = _dense(side**2, m.patch_size**2 * m.channels, m.width), m.width
    windows = m.windows if len(m.windows) > 1 else tuple(m.windows) * len(m.stages)
    for i, blocks in enumerate(m.stages):
        if i:
            side = -(-side // 2)
            total += _dense(side**2, 4 * width, 2 * width)
            width *= 2
        window = min(side, windows[i])
        padded = (-(-side // window) * window) ** 2
        attention = 4 * _dense(padded, width, width) + 2 * _dense(padded, window**2, width)
        total += blocks * (attention + 2 * _dense(side**2, width, int(m.mlp_ratio * width)))
    return total + _dense(1, width, m.out)


FORMULAS = {"ViT": _vit, "TextTransformer": _text, "ResNet": _resnet, "ConvNeXt": _convnext, "Swin": _swin}

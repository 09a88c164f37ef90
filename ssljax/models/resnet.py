"""ResNet (He et al. 2015), v1.5: stride in the 3x3 convolution, the last BatchNorm of a block starts at zero."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.fields import arg, dtype
from ssljax.models import constrain_batch
from ssljax.models.layers import BatchNorm

SIZES = {
    18: dict(stages=(2, 2, 2, 2), bottleneck=False),
    34: dict(stages=(3, 4, 6, 3), bottleneck=False),
    50: dict(stages=(3, 4, 6, 3), bottleneck=True),
    101: dict(stages=(3, 4, 23, 3), bottleneck=True),
    152: dict(stages=(3, 8, 36, 3), bottleneck=True),
    200: dict(stages=(3, 24, 36, 3), bottleneck=True),
}
STEMS = {"imagenet": (7, 2), "small": (3, 2), "cifar": (3, 1)}  # kernel and stride; imagenet has a max-pool behind it


def size(depth, **changes):
    """50 -> the fields of a ResNet-50, for a config: `encoder=resnet.size(50)`."""
    if depth not in SIZES:
        raise UserError(f"ResNet depth {depth!r}: expected one of {list(SIZES)}")
    return dict(name="resnet", **SIZES[depth]) | changes


class Residual(nn.Module):
    """One basic or bottleneck block. (B, H, W, C) -> (B, H/stride, W/stride, out)."""

    width: int  # channels of the 3x3 convolution
    out: int
    stride: int
    bottleneck: bool
    stride_first: bool
    groups: int
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        def conv(features, kernel, stride, name, groups=1):
            return nn.Conv(features, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False, dtype=self.dtype,
                           feature_group_count=groups, kernel_init=_conv_init, name=name)  # fmt: skip

        def norm(name, scale=nn.initializers.ones):
            return BatchNorm(not self.train, dtype=self.dtype, scale_init=scale, name=name)

        shortcut = x
        if x.shape[-1] != self.out or self.stride != 1:
            shortcut = norm("downsample_bn")(conv(self.out, 1, self.stride, "downsample_conv")(x))
        if self.bottleneck:
            first, second = (self.stride, 1) if self.stride_first else (1, self.stride)
            y = nn.relu(norm("bn1")(conv(self.width, 1, first, "conv1")(x)))
            y = nn.relu(norm("bn2")(conv(self.width, 3, second, "conv2", self.groups)(y)))
            y = norm("bn3", nn.initializers.zeros)(conv(self.out, 1, 1, "conv3")(y))
        else:
            y = nn.relu(norm("bn1")(conv(self.width, 3, self.stride, "conv1")(x)))
            y = norm("bn2", nn.initializers.zeros)(conv(self.out, 3, 1, "conv2")(y))
        return constrain_batch(nn.relu(shortcut + y))


class ResNet(nn.Module):
    """Images (B, H, W, C) -> {"pooled": (B, D), "patches": (B, h*w, D), "stages": [(B, h, w, D), ...]}: the mean of the last feature map,
    that map, and the maps of all stages. With `out`: "embedding" (B, out), linear.

    BatchNorm statistics are over the global batch on any mesh: the step is one program over the whole batch.
    """

    stages: tuple = arg((3, 4, 6, 3), "number of blocks of each stage")
    bottleneck: bool = arg(True, "bottleneck blocks (50 and deeper) or basic ones (18, 34)")
    width: int = arg(64, "channels of the stem and the first stage's 3x3 convolutions; each stage doubles them")
    widths: tuple = arg((), "output channels of each stage; (): by `width`, 4 times that of bottlenecks")
    stem_width: int = arg(0, "channels of the stem; 0: `width`")
    expansion: int = arg(4, "a bottleneck's output channels over those of its 3x3 convolution (2: Wide ResNet)")
    groups: int = arg(1, "groups of a bottleneck's 3x3 convolution (ResNeXt)")
    first_stride: int = arg(1, "stride of the first stage; that of the others is 2")
    stride_first: bool = arg(False, "stride in a bottleneck's first convolution (v1), not in the 3x3")
    stem: str = arg("imagenet", "imagenet (7x7 stride 2 and max-pool), small (3x3 stride 2) or cifar (3x3)")
    out: int = arg(0, 'width of "embedding", a linear layer on the pooled vector; 0: none')
    out_bias: bool = arg(False, "a bias of that layer")
    dtype: str = dtype()

    @nn.compact
    def __call__(self, images, *, train):
        dtype = jnp.dtype(self.dtype)
        if self.stem not in STEMS:
            raise UserError(f"stem={self.stem!r}: expected one of {', '.join(STEMS)}")
        kernel, stride = STEMS[self.stem]
        x = nn.Conv(self.stem_width or self.width, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False, dtype=dtype,
                    kernel_init=_conv_init, name="conv1")(images)  # fmt: skip
        x = nn.relu(BatchNorm(not train, dtype=dtype, name="bn1")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        widths = self.widths or tuple(self.width * 2**i * (4 if self.bottleneck else 1) for i in range(len(self.stages)))
        if len(widths) != len(self.stages):
            raise UserError(f"widths={widths}: expected one for each of the {len(self.stages)} stages")
        maps = []
        for stage, (blocks, out) in enumerate(zip(self.stages, widths, strict=True)):
            for block in range(blocks):
                stride = 1 if block else 2 if stage else self.first_stride
                inner = out // self.expansion if self.bottleneck else out
                x = Residual(inner, out, stride, self.bottleneck, self.stride_first, self.groups, train, dtype,
                             name=f"layer{stage + 1}_{block}")(x)  # fmt: skip
            maps.append(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        outputs = {"pooled": x.mean(axis=1, dtype=jnp.float32), "patches": x, "stages": maps}
        if self.out:
            outputs["embedding"] = nn.Dense(self.out, use_bias=self.out_bias, dtype=dtype, name="out")(outputs["pooled"])
        return outputs

    def example(self):
        """Inputs of a batch of one, which `models.init` may be called with."""
        return (jnp.zeros((1, 64, 64, 3)),), {}


_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

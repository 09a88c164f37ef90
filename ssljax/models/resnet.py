"""ResNet (He et al. 2015), v1.5: stride in the 3x3 convolution, the last BatchNorm of a block starts at zero."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.fields import arg
from ssljax.models import constrain_batch

SIZES = {
    18: dict(stages=(2, 2, 2, 2), bottleneck=False),
    34: dict(stages=(3, 4, 6, 3), bottleneck=False),
    50: dict(stages=(3, 4, 6, 3), bottleneck=True),
    101: dict(stages=(3, 4, 23, 3), bottleneck=True),
    152: dict(stages=(3, 8, 36, 3), bottleneck=True),
    200: dict(stages=(3, 24, 36, 3), bottleneck=True),
}


def size(depth, **changes):
    """50 -> the fields of a ResNet-50, for a config: `encoder=resnet.size(50)`."""
    if depth not in SIZES:
        raise UserError(f"ResNet depth {depth!r}: expected one of {list(SIZES)}")
    return dict(name="resnet", **SIZES[depth]) | changes


class Residual(nn.Module):
    """One basic or bottleneck block. (B, H, W, C) -> (B, H/stride, W/stride, out)."""

    width: int
    stride: int
    bottleneck: bool
    train: bool
    dtype: Any

    @nn.compact
    def __call__(self, x):
        def conv(features, kernel, stride, name):
            return nn.Conv(features, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False,
                           dtype=self.dtype, kernel_init=_conv_init, name=name)  # fmt: skip

        def norm(name, scale=nn.initializers.ones):
            return nn.BatchNorm(not self.train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, scale_init=scale, name=name)

        out = self.width * (4 if self.bottleneck else 1)
        shortcut = x
        if x.shape[-1] != out or self.stride != 1:
            shortcut = norm("downsample_bn")(conv(out, 1, self.stride, "downsample_conv")(x))
        if self.bottleneck:
            y = nn.relu(norm("bn1")(conv(self.width, 1, 1, "conv1")(x)))
            y = nn.relu(norm("bn2")(conv(self.width, 3, self.stride, "conv2")(y)))
            y = norm("bn3", nn.initializers.zeros)(conv(out, 1, 1, "conv3")(y))
        else:
            y = nn.relu(norm("bn1")(conv(self.width, 3, self.stride, "conv1")(x)))
            y = norm("bn2", nn.initializers.zeros)(conv(out, 3, 1, "conv2")(y))
        return constrain_batch(nn.relu(shortcut + y))


class ResNet(nn.Module):
    """Images (B, H, W, 3) -> {"pooled": (B, C), "patches": (B, h*w, C)}: the last feature map and its mean.

    BatchNorm statistics are over the global batch on any mesh: the step is one program over the whole batch.
    """

    stages: tuple = arg((3, 4, 6, 3), "number of blocks of each stage")
    bottleneck: bool = arg(True, "bottleneck blocks (50 and deeper) or basic ones (18, 34)")
    width: int = arg(64, "channels of the first stage; each stage doubles them")
    stem: str = arg("imagenet", "imagenet (7x7 stride 2 and max-pool), small (3x3 stride 2) or cifar (3x3)")
    dtype: str = arg("float32", "compute dtype: float32 or bfloat16; parameters and statistics are float32")

    @nn.compact
    def __call__(self, images, *, train):
        dtype = jnp.dtype(self.dtype)
        kernel, stride = {"imagenet": (7, 2), "small": (3, 2), "cifar": (3, 1)}.get(self.stem, (None, None))
        if kernel is None:
            raise UserError(f"stem={self.stem!r}: expected imagenet, small or cifar")
        x = nn.Conv(self.width, (kernel, kernel), (stride, stride), padding=kernel // 2, use_bias=False, dtype=dtype,
                    kernel_init=_conv_init, name="conv1")(images)  # fmt: skip
        x = nn.relu(nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=dtype, name="bn1")(x))
        if self.stem == "imagenet":
            x = nn.max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.stages):
            for block in range(blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                x = Residual(self.width * 2**stage, stride, self.bottleneck, train, dtype,
                             name=f"layer{stage + 1}_{block}")(x)  # fmt: skip
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        return {"pooled": x.mean(axis=1, dtype=jnp.float32), "patches": x}


_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

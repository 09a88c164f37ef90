"""Text transformer (Radford et al. 2021, section 2.4; SigLIP: Zhai et al. 2023)."""

import flax.linen as nn
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.fields import arg
from ssljax.models.transformer import Transformer

SIZES = {
    "S": dict(width=384, depth=12, heads=6, mlp_dim=1536),
    "B": dict(width=768, depth=12, heads=12, mlp_dim=3072),
    "L": dict(width=1024, depth=24, heads=16, mlp_dim=4096),
}


def size(variant, **changes):
    """ "B" -> the fields of a text tower of that size, for a config."""
    if variant not in SIZES:
        raise UserError(f"text variant {variant!r}: expected one of {list(SIZES)}")
    return dict(name="text", **SIZES[variant]) | changes


class TextTransformer(nn.Module):
    """Token ids int (B, T) -> {"pooled": (B, out or D), "tokens": (B, T, D)}. Id 0 is padding and is attended like any other."""

    vocab_size: int = arg(32000, "number of token ids")
    length: int = arg(64, "tokens a text is padded or cut to")
    width: int = arg(768, "width of a token")
    depth: int = arg(12, "number of blocks")
    heads: int = arg(12, "attention heads")
    mlp_dim: int = arg(3072, "hidden width of a block's MLP")
    causal: bool = arg(False, "causal attention (CLIP) or both ways (SigLIP)")
    pool: str = arg("last", "last (SigLIP), eot (position of the largest id, CLIP) or gap (mean over tokens that are not padding)")
    activation: str = arg("gelu", "gelu, gelu_tanh or quick_gelu")
    remat: str = arg("none", "what the backward pass recomputes: none, dots, full")
    dtype: str = arg("float32", "compute dtype: float32 or bfloat16; parameters are float32")

    @nn.compact
    def __call__(self, ids, *, train):
        init = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=init, name="token_embed")(ids)
        x = x + self.param("pos_embed", nn.initializers.normal(0.01), (1, self.length, self.width)).astype(x.dtype)
        x = Transformer(
            self.depth,
            self.heads,
            self.mlp_dim,
            causal=self.causal,
            activation=self.activation,
            remat=self.remat,
            dtype=jnp.dtype(self.dtype),
            name="transformer",
        )(x, train=train)
        if self.pool == "last":
            pooled = x[:, -1]
        elif self.pool == "eot":
            pooled = jnp.take_along_axis(x, ids.argmax(-1)[:, None, None], axis=1)[:, 0]
        elif self.pool == "gap":
            real = (ids != 0)[..., None].astype(x.dtype)
            pooled = (x * real).sum(1) / jnp.maximum(real.sum(1), 1)
        else:
            raise UserError(f"pool={self.pool!r}: expected last, eot or gap")
        return {"pooled": pooled, "tokens": x}

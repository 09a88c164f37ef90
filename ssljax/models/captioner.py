"""Decoders of captions, and what mixes the tokens of two towers."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from ssljax.fields import arg
from ssljax.models.layers import LayerNorm, stacked
from ssljax.models.transformer import MLP, Attention, Block, Context, Stack, kernel_init


class CrossBlock(nn.Module):
    """x + Attention(LN(x) to LN(memory)); x + MLP(LN(x)). (B, N, D), (B, M, C) -> (B, N, D)."""

    heads: int
    mlp_dim: int
    activation: str = "gelu"
    norm_eps: float = 1e-6
    decode: int = 0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x, memory):
        def norm(name):
            return LayerNorm(epsilon=self.norm_eps, dtype=self.dtype, name=name)

        attention = Attention(self.heads, norm_eps=self.norm_eps, decode=self.decode, dtype=self.dtype, name="attn")
        x = x + attention(norm("norm1")(x), Context(memory=norm("norm_memory")(memory)))
        return x + MLP(self.mlp_dim, self.activation, self.dtype, name="mlp")(norm("norm2")(x))


class Pair(nn.Module):
    """One layer of CoCa's decoder: a causal block, then a block that looks at the image."""

    heads: int
    mlp_dim: int
    cross_mlp_dim: int
    activation: str
    norm_eps: float
    causal: bool
    decode: int
    dtype: Any

    @nn.compact
    def __call__(self, x, memory):
        shared = dict(activation=self.activation, norm_eps=self.norm_eps, decode=self.decode, dtype=self.dtype)
        x, _ = Block(self.heads, self.mlp_dim, causal=self.causal, **shared, name="own")(x, 0.0, Context())
        return CrossBlock(self.heads, self.cross_mlp_dim, **shared, name="cross")(x, memory), None


class CaptionDecoder(Stack):
    """CoCa's multimodal decoder (Yu et al. 2022, section 3.2): the text tower's tokens (B, T, D), each layer looking at the image's
    (B, M, D) -> float32 logits of the next token (B, T, vocab_size)."""

    vocab_size: int = arg(32000, "number of token ids")
    cross_mlp_dim: int = arg(3072, "hidden width of the MLP behind cross-attention")
    causal: bool = arg(True, "a token sees those before it only; off: all (CapPa's parallel prediction)")

    @nn.compact
    def __call__(self, tokens, memory, *, train, decode=0):
        """decode: for writing, the tokens a text may get: tokens (B, 1, D) is the next one, earlier ones are in the collection "cache"."""
        del train  # no dropout: the same function in training and evaluation
        stack = stacked(Pair, self.depth, self.remat, in_axes=nn.broadcast, collections=("cache",))
        fields = (self.heads, self.mlp_dim, self.cross_mlp_dim, self.activation, self.norm_eps, self.causal, decode)
        x, _ = stack(*fields, jnp.dtype(self.dtype), name="blocks")(tokens.astype(self.dtype), memory)
        x = self.layer_norm("norm")(x)
        return nn.Dense(self.vocab_size, use_bias=False, dtype=self.dtype, kernel_init=kernel_init, name="out")(x).astype(jnp.float32)


class Fusion(Stack):
    """FLAVA's multimodal encoder (Singh et al. 2022, section 3.1): a class token, image tokens (B, N, C), text tokens (B, T, E) ->
    {"tokens": (B, 1 + N + T, D), "pooled": (B, D)}."""

    pooler: bool = arg(True, 'add "pooler": tanh of a linear layer on the class token')

    @nn.compact
    def __call__(self, image, text, *, train, valid=None):
        """valid: bool (B, 1 + N + T), tokens that others may look at; None: all."""

        def dense(name):
            return nn.Dense(self.width, dtype=self.dtype, kernel_init=kernel_init, name=name)

        token = self.param("cls_token", nn.initializers.normal(0.02), (1, 1, self.width))
        first = jnp.broadcast_to(token, (image.shape[0], 1, self.width)).astype(self.dtype)
        x = jnp.concatenate([first, dense("image")(image), dense("text")(text)], axis=1)
        context = Context(mask=None if valid is None else valid[:, None, None, :])
        x = self.transformer()(x, train=train, context=context)
        outputs = {"tokens": x, "pooled": x[:, 0]}
        return outputs | ({"pooler": jnp.tanh(dense("pooler")(x[:, 0]))} if self.pooler else {})

"""Text transformer (Radford et al. 2021, section 2.4; SigLIP: Zhai et al. 2023)."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ssljax.errors import UserError
from ssljax.fields import arg
from ssljax.models.transformer import Context, Stack, kernel_init

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


class TextTransformer(Stack):
    """Token ids int (B, T) -> {"tokens": (B, T, D), "pooled": (B, D), ["embedding": (B, out)], ...}. T is at most `length`.

    Padding is attended like any token (CLIP and SigLIP do, and pool where it does no harm) unless `valid` says otherwise.
    """

    vocab_size: int = arg(32000, "number of token ids")
    length: int = arg(64, "tokens a text is padded or cut to")
    causal: bool = arg(False, "causal attention (CLIP) or both ways (SigLIP)")
    pool: str = arg("last", "last (SigLIP), first (BERT), eot (the largest id, or the first `eos`: CLIP), gap (mean of what is not 0)")
    eos: int = arg(-1, "id of the end token where pool is eot; -1: the largest id in a text")
    types: int = arg(0, "number of token types (BERT: 2), of which all tokens are the first; 0: none")
    class_token: bool = arg(False, "append a class token, which is pooled and sees what is not padding, id 0 (CoCa)")
    first_norm: bool = arg(False, "LayerNorm in front of the blocks (BERT)")
    last_norm: str = arg(
        "tokens",
        "what the LayerNorm behind the blocks takes: tokens, pooled (the pooled vector only) or none",
        one_of=("tokens", "pooled", "none"),
    )
    cross: bool = arg(False, "blocks also attend to `memory`, where one is given")
    memory_width: int = arg(0, "width of that memory")
    pooler: bool = arg(False, 'add "pooler": tanh of a linear layer on the first token')
    out: int = arg(0, 'width of "embedding", a linear layer on the pooled vector; 0: none')
    out_bias: bool = arg(False, "a bias of that layer")

    @nn.compact
    def __call__(self, ids, *, train, valid=None, memory=None, layers=False, at=None, tokens=True):
        """valid: bool, tokens that others may look at, (B, T), or which may look at which, (B, T, T); None: all.
        layers: add "layers" (depth, B, T, D), as `Transformer` gives them.
        memory: (B, M, C), what cross-attention looks at. at: int32 scalar, for writing: ids (B, 1) is the token at this place, earlier ones
        are in the collection "cache" (see decode.py). tokens=False: they are not wanted; where the first or the last one is pooled, the
        last block computes that one alone."""
        init = nn.initializers.normal(0.02)
        x = nn.Embed(self.vocab_size, self.width, dtype=self.dtype, embedding_init=init, name="token_embed")(ids)
        mask = None if valid is None else valid[:, None] if valid.ndim == 3 else valid[:, None, None, :]
        appended = self.class_token and at is None  # writing, there is no text yet that it could stand behind
        if appended:
            token = self.param("cls_token", init, (1, 1, self.width)).astype(x.dtype)
            x = jnp.concatenate([x, jnp.broadcast_to(token, (len(x), 1, self.width))], axis=1)
            mask = _class_mask(ids)
        table = self.param("pos_embed", nn.initializers.normal(0.01), (1, self.length + self.class_token, self.width))
        if ids.shape[1] > self.length:
            raise UserError(f"texts of {ids.shape[1]} tokens, but the tower has length={self.length}")
        place = table[:, : x.shape[1]] if at is None else jax.lax.dynamic_slice_in_dim(table, at, 1, axis=1)
        x = x + place.astype(x.dtype)
        if self.types:
            x = x + self.param("types", init, (self.types, self.width))[0].astype(x.dtype)
        x = self.layer_norm("first_norm")(x) if self.first_norm else x
        context = Context(mask=mask, memory=memory)
        decode = 0 if at is None else self.length
        stack = self.transformer(causal=self.causal, cross=self.cross, decode=decode, last_norm=self.last_norm == "tokens")
        only = None if tokens or layers or appended or self.pooler else {"first": None if self.causal else 0, "last": -1}.get(self.pool)
        x, each = stack(x, train=train, context=context, layers=layers or True, only=only)
        pooled = x[:, -1] if appended else self._pool(x, ids)
        pooled = self.layer_norm("pool_norm")(pooled) if self.last_norm == "pooled" else pooled
        x = x[:, :-1] if appended else x
        outputs = {"tokens": x, "pooled": pooled} | ({"layers": each} if layers else {})
        if self.pooler:
            dense = nn.Dense(self.width, dtype=self.dtype, kernel_init=kernel_init, name="pooler")
            outputs["pooler"] = jnp.tanh(dense(x[:, 0]))
        if self.out:
            dense = nn.Dense(self.out, use_bias=self.out_bias, dtype=self.dtype, kernel_init=kernel_init, name="out")
            outputs["embedding"] = dense(outputs["pooled"])
        return outputs if tokens else {name: y for name, y in outputs.items() if name != "tokens"}

    def example(self):
        """Inputs of a batch of one, which `models.init` may be called with."""
        return (jnp.zeros((1, self.length), jnp.int32),), {"memory": jnp.zeros((1, 1, self.memory_width))} if self.cross else {}

    def _pool(self, x, ids):
        if self.pool == "last":
            return x[:, -1]
        if self.pool == "first":
            return x[:, 0]
        if self.pool == "eot":
            at = (ids if self.eos < 0 else (ids == self.eos).astype(jnp.int32)).argmax(-1)
            return jnp.take_along_axis(x, at[:, None, None], axis=1)[:, 0]
        if self.pool == "gap":
            real = (ids != 0)[..., None].astype(x.dtype)
            return (x * real).sum(1) / jnp.maximum(real.sum(1), 1)
        raise UserError(f"pool={self.pool!r}: expected last, first, eot or gap")


def _class_mask(ids):
    """bool (B, 1, 1, T + 1): keys that are seen where a class token stands behind a text, causality apart.

    As open_clip has it, one place off: key 0 always, and key j where token j - 1 is not padding. Under causality that matters to padding,
    which then sees less, and to the class token, which sees one padding."""
    return jnp.concatenate([jnp.ones((len(ids), 1), bool), ids != 0], axis=1)[:, None, None, :]

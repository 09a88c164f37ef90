"""A weighted sum of methods on one encoder: terms=dict(dino=dict(weight=1.0, head=...), koleo=dict(weight=0.1)) in a config."""

import dataclasses

import flax.linen as nn
import jax

from ssljax import trees
from ssljax.errors import UserError
from ssljax.fields import arg, methods, module
from ssljax.method import Method


@dataclasses.dataclass(frozen=True)
class Sum(Method):
    """loss = sum over terms of weight * the term's loss. All see the same batch, and params["encoder"] is that of all of them.

    What else a term has lies under its name: params["dino"] its head, extra["dino"] its teacher and centre, s["dino_ema"] its schedule, and
    its metrics alike. A term is the method as it is, so it runs the encoder itself; where two terms run it in the same way on the same
    views the compiler runs it once.
    """

    encoder: nn.Module = module("the encoder that all terms share", name="resnet")
    terms: tuple = methods("{method: {weight, and the method's fields, but the encoder}}")
    features: str = arg("", "term whose features are kept; default: the first by name")

    def __post_init__(self):
        kept, known = self.features, [name for name, _, _ in self.terms]
        if kept and kept not in known:
            raise UserError(f"config.method.features={kept!r}: expected one of the terms, {', '.join(known)}")
        for name, _, term in self.terms:
            if term.refresh or type(term).weights is not Method.weights:
                raise UserError(f"config.method.terms.{name}: it does more than a loss (refresh, weights of others), and cannot be a term")

    @property
    def text(self):
        """The text tower, if a term has one: what the tokenizer has to suit."""
        return next((term.text for _, _, term in self.terms if getattr(term, "text", None) is not None), None)

    @property
    def groups(self):
        """The terms' own, of their own parameters: "^head/" of dino is "^dino/head/"; of the encoder there is one for all."""
        own = lambda name, p: p if p.startswith("^encoder/") else f"^{name}/{p[1:]}" if p.startswith("^") else f"^{name}/.*(?:{p})"  # noqa: E731
        return tuple((own(name, pattern), rule) for name, _, term in self.terms for pattern, rule in term.groups)

    def schedules(self, run):
        return {f"{name}_{key}": plan for name, _, term in self.terms for key, plan in term.schedules(run).items()}

    def _each(self, params, extra, s):
        """(name, weight, method, its params, its extra, its s) of every term."""
        for name, weight, term in self.terms:
            own = {key.removeprefix(f"{name}_"): value for key, value in s.items()}
            yield name, weight, term, {**params[name], "encoder": params["encoder"]}, extra[name], own

    def init(self, rng, batch):
        params, extra = {}, {}
        for key, (name, _, term) in zip(jax.random.split(rng, len(self.terms)), self.terms, strict=True):
            own, extra[name] = term.init(key, batch)
            encoder = own.pop("encoder")
            params = {"encoder": encoder, **params, name: own}  # the first term's encoder stays
            if "teacher" in extra[name]:
                extra[name]["teacher"]["encoder"] = trees.copy(params["encoder"])
        return params, extra

    def encode(self, params, extra, batch, rng, s):
        encodings, after = {}, {}
        for key, (name, _, term, own, more, plans) in zip(
            jax.random.split(rng, len(self.terms)), self._each(params, extra, s), strict=True
        ):
            encodings[name], after[name] = term.encode(own, more, batch, key, plans)
        return encodings, after

    def objective(self, params, extra, encodings, batch, s):
        total, after, metrics = 0.0, {}, {}
        for name, weight, term, own, more, plans in self._each(params, extra, s):
            loss, (after[name], found) = term.objective(own, more, encodings[name], batch, plans)
            total += weight * loss
            metrics |= {f"{name}_{key}": value for key, value in {"loss": loss, **found}.items()}
        return total, (after, metrics)

    def after_step(self, params, extra, s):
        return {name: term.after_step(own, more, plans) for name, _, term, own, more, plans in self._each(params, extra, s)}

    def embed(self, params, extra, batch):
        name, _, term = next(t for t in self.terms if self.features in ("", t[0]))
        return term.embed({**params[name], "encoder": params["encoder"]}, extra[name], batch)

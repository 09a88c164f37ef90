"""Schedules: step -> float32 scalar. `step` is an int32 scalar or array, counted from 0; a real-valued one works too.

Every schedule falls from `peak` (or rises: nothing asks peak > final) and takes the same warm-up and cool-down:

  warmup_steps    linear warm-up from warmup_start to peak over so many steps, which are part of `steps`
  warmup          where the warm-up ends; W = warmup_steps
                    "after"    start + (peak - start) * step / W: peak at step W, the first step behind the warm-up
                    "within"   start + (peak - start) * step / (W - 1): from start to peak inside the W steps
                    "ahead"    start + (peak - start) * (step + 1) / W: already moving at step 0, peak at step W - 1
  cooldown_steps  the last so many steps are multiplied by (steps - step) / cooldown_steps, to reach 0 at `steps`

Past `steps` a schedule stays at its last value.
"""

import inspect

import jax.numpy as jnp
import numpy as np

from ssljax.errors import UserError

WARMUPS = {"after": (0, 0), "within": (0, -1), "ahead": (1, 0)}  # what is added to the step and to the number of steps


def _shaped(shape, peak, steps=None, *, warmup_steps=0, warmup_start=0.0, warmup="after", cooldown_steps=0):
    """The schedule that is `shape`, a function of the steps since the warm-up, between warm-up and cool-down."""
    if warmup not in WARMUPS:
        raise UserError(f"warmup={warmup!r}: expected one of {', '.join(WARMUPS)}")
    if min(warmup_steps, cooldown_steps) < 0 or (steps is not None and warmup_steps + cooldown_steps > steps):
        raise UserError(f"warmup_steps={warmup_steps} and cooldown_steps={cooldown_steps}: expected room for both in steps={steps}")
    if cooldown_steps and steps is None:
        raise UserError(f"cooldown_steps={cooldown_steps} needs steps, the end of the run")
    ahead, fewer = WARMUPS[warmup]

    def schedule(step):
        step = jnp.asarray(step)
        value = shape(jnp.maximum(step - warmup_steps, 0).astype(jnp.float32))
        rise = (step + ahead).astype(jnp.float32) / max(warmup_steps + fewer, 1)
        value = jnp.where(step < warmup_steps, warmup_start + (peak - warmup_start) * rise, value)
        if cooldown_steps:
            value = value * jnp.clip((steps - step).astype(jnp.float32) / cooldown_steps, 0.0, 1.0)
        return value.astype(jnp.float32)

    return schedule


def _span(steps, reach_final=False, warmup_steps=0, **_):
    """Steps over which a schedule falls, behind its warm-up."""
    if steps < 1:
        raise UserError(f"steps={steps}: a schedule needs at least one step")
    return max(steps - warmup_steps - reach_final, 1)


def constant(value, steps=None, **ramp):
    """`value` at every step behind the warm-up."""
    return _shaped(lambda t: jnp.full_like(t, value), value, steps, **ramp)


def linear(peak, final, steps, *, power=1.0, **ramp):
    """final + (peak - final) * (1 - t / n)^power, t steps into the n behind the warm-up."""
    n = _span(steps, **ramp)
    return _shaped(lambda t: final + (peak - final) * (jnp.maximum(n - t, 0.0) / n) ** power, peak, steps, **ramp)


def cosine(peak, final, steps, *, reach_final=False, **ramp):
    """final + (peak - final) * (1 + cos(pi * t / n)) / 2, t steps into the n behind the warm-up.

    SGDR, Loshchilov and Hutter 2017, equation 5. `final` is reached at step `steps`, one behind the last of the run;
    with reach_final at the last step itself.
    """
    n = _span(steps, reach_final, **ramp)

    def fall(t):
        # (1 + cos x) / 2 = sin((pi - x) / 2)^2, without the cancellation near the end.
        return final + (peak - final) * jnp.square(jnp.sin(jnp.pi / 2 * jnp.maximum(n - t, 0.0) / n))

    return _shaped(fall, peak, steps, **ramp)


def rsqrt(peak, steps, *, timescale=10_000, **ramp):
    """peak / sqrt(1 + t / timescale), t steps behind the warm-up (Zhai et al. 2022, section 3.5).

    It needs no end; cooldown_steps makes one.
    """
    return _shaped(lambda t: peak / jnp.sqrt((t + timescale) / timescale), peak, steps, **ramp)


def stairs(peak, steps, *, at, factors, **ramp):
    """peak * factors[i] from step at[i] on, for the last i that was passed; `peak` before. at: increasing steps."""
    at, factors = tuple(at), tuple(factors)
    if len(at) != len(factors) or list(at) != sorted(at):
        raise UserError(f"at={at}, factors={factors}: expected increasing steps and one factor for each")
    warm = ramp.get("warmup_steps", 0)
    edges, values = np.array(at, np.float32), np.array((1.0, *factors), np.float32)
    return _shaped(lambda t: peak * jnp.asarray(values)[jnp.searchsorted(edges, t + warm, side="right")], peak, steps, **ramp)


KINDS = {"constant": constant, "linear": linear, "cosine": cosine, "rsqrt": rsqrt, "stairs": stairs}
TYPES = {"warmup": str, "reach_final": bool, "at": (tuple, list), "factors": (tuple, list)}  # all others are numbers


def make(spec, steps):
    """A number, or a dict such as {"kind": "cosine", "peak": 1e-3, "warmup_steps": 100, "final": 0.0} -> schedule.

    The keys are those of the function of that name and of the warm-up and cool-down. steps: the length of the run, used
    unless the spec has its own; `final` is 0 unless given. Raises UserError for an unknown kind or key, for a missing
    key and for a value of another type.
    """
    if isinstance(spec, (int, float)):
        return constant(float(spec))
    if not hasattr(spec, "items"):  # a dict or a ConfigDict
        raise UserError(f"schedule {spec!r}: expected a number, or a section with kind={', '.join(KINDS)}")
    spec = dict(spec)
    kind = spec.pop("kind", None)
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"schedule kind={kind!r}: expected one of {', '.join(KINDS)}, or a number for a constant")
    own = [p for p in inspect.signature(KINDS[kind]).parameters.values() if p.kind is not p.VAR_KEYWORD]
    ramp = [p for p in inspect.signature(_shaped).parameters.values() if p.kind is p.KEYWORD_ONLY]
    accepted = [p.name for p in own + ramp]
    spec = {"steps": steps, **({"final": 0.0} if "final" in accepted else {}), **spec}
    for what, wrong in (
        ("unknown", [key for key in spec if key not in accepted]),
        ("missing", [p.name for p in own if p.default is p.empty and p.name not in spec]),
        ("of the wrong type:", [key for key, x in spec.items() if not isinstance(x, TYPES.get(key, (int, float)))]),
    ):
        if wrong:
            given = ", ".join(f"{key}={spec[key]!r}" if key in spec else key for key in wrong)
            raise UserError(f"schedule of kind={kind!r}: {what} {given}; accepted: {', '.join(accepted)}")
    return KINDS[kind](**spec)

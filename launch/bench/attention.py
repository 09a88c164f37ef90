"""Attention as the models call it on a GPU (cuDNN's flash attention) against the compiler's own: time, memory and error, in one run.

    python launch/bench/attention.py                # lengths of ViTs and text towers, bfloat16, batch 128, 12 heads of 64

Forward and backward of `models.attend.attend`. Errors are of the output and of each gradient, norm of the difference over the norm,
from the same attention in float32 at full precision; the compiler's own is in bfloat16 as well. On a CPU both are the same function.
"""

import json
import pathlib
import statistics
import sys
import time

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench import rows  # noqa: E402
from ssljax import cli  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_list("lengths", ["50", "64", "77c", "196", "197", "257", "577"], "queries and keys; c: causal", flag_values=FLAGS)
flags.DEFINE_integer("batch", 128, "sequences", flag_values=FLAGS)
flags.DEFINE_integer("heads", 12, "heads", flag_values=FLAGS)
flags.DEFINE_integer("width", 64, "of a head", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 10, "rounds; each takes one turn of both forms", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/attention.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)


def measure(length, causal):
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ssljax.models.attend import attend

    random = np.random.default_rng(0)
    shape = (FLAGS.batch, length, FLAGS.heads, FLAGS.width)
    arrays = [jnp.asarray(random.standard_normal(shape, np.float32)).astype(jnp.bfloat16) for _ in range(4)]
    plain = lambda q, k, v, causal: jax.nn.dot_product_attention(q, k, v, is_causal=causal)  # noqa: E731

    def both(form):
        """Output and gradients, of the sum of the output times `weight`."""

        def loss(q, k, v, weight):
            y = form(q, k, v, causal=causal)
            return jnp.sum(y.astype(jnp.float32) * weight), y

        def run(*given):
            slopes, y = jax.grad(loss, (0, 1, 2), has_aux=True)(*given)
            return dict(zip(("out", "q", "k", "v"), (y, *slopes), strict=True))

        return run

    with jax.default_matmul_precision("highest"):
        wanted = jax.jit(both(plain))(*(x.astype(jnp.float32) for x in arrays))
    times, row = {}, {"length": length, "causal": causal, "batch": FLAGS.batch, "heads": FLAGS.heads, "width": FLAGS.width}
    built = {name: jax.jit(both(form)).lower(*arrays).compile() for name, form in (("ours", attend), ("plain", plain))}
    for turn in range(FLAGS.rounds + 2):
        for name, compiled in built.items():
            started = time.perf_counter()
            found = jax.block_until_ready(compiled(*arrays))
            if turn > 1:
                times.setdefault(name, []).append(time.perf_counter() - started)
            elif turn:
                away = {k: jnp.linalg.norm((found[k] - v).ravel()) / jnp.linalg.norm(v.ravel()) for k, v in wanted.items()}
                row |= {f"{name}_error_{k}": float(f"{float(v):.2e}") for k, v in away.items()}
    for name, compiled in built.items():
        row |= {f"{name}_seconds": round(statistics.median(times[name]), 6)}
        row |= {f"{name}_temporary_mib": round(compiled.memory_analysis().temp_size_in_bytes / 2**20, 1)}
    return row


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    table = []
    for spec in FLAGS.lengths:
        table.append(measure(int(spec.rstrip("c")), spec.endswith("c")) | rows.origin())
        rows.keep(table[-1:], FLAGS.out)
        print(json.dumps(table[-1]), file=sys.stderr, flush=True)
    print("| length | causal | ours ms | compiler's ms | ours MiB | compiler's MiB | ours, worst error | compiler's |\n|" + " --- |" * 8)
    for row in table:
        worst = [max(row[f"{name}_error_{k}"] for k in ("out", "q", "k", "v")) for name in ("ours", "plain")]
        figures = [row["ours_seconds"] * 1e3, row["plain_seconds"] * 1e3, row["ours_temporary_mib"], row["plain_temporary_mib"]]
        print(f"| {row['length']} | {row['causal']} | " + " | ".join(f"{x:.3g}" for x in figures + worst) + " |")
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    cli.command(main)

"""What judging costs: neighbours against the bare products they need, the probe's sweep of twelve regularisers against one.

    python launch/bench/evals.py            # 200,000 x 200,000 neighbours of width 384: 20 minutes on two CPU cores
    python launch/bench/evals.py --quick    # a fifth of the examples, a twenty-fifth of the work

Products: the same blocks of queries against the same chunks, summed, one after the other with the search in alternating rounds; the ratio
is the median. Memory is the growth of this process's peak over what it had with the features made.
"""

import json
import pathlib
import resource
import statistics
import sys

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from launch.bench import rows  # noqa: E402
from ssljax import cli  # noqa: E402

FLAGS = flags.FlagValues()
flags.DEFINE_bool("quick", False, "40,000 examples, not 200,000", flag_values=FLAGS)
flags.DEFINE_integer("rounds", 3, "rounds of every case", flag_values=FLAGS)
flags.DEFINE_string("out", str(ROOT / "launch/bench/results/evals.jsonl"), "rows are appended here", flag_values=FLAGS)
flags.DEFINE_bool("json", False, "end with one JSON line of the whole table", flag_values=FLAGS)
WIDTH, K, CHUNK, BLOCK = 384, 20, 8192, 1024


def peak():
    """GiB that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def neighbours(count, rounds):
    """Row of the nearest of `count` features among themselves. Rounds take turns over shares of the queries, so that all are asked once.
    peak_gib: of the process, interpreter and features included, but for the copy of them that the bare products have."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from ssljax.evals import knn

    features = np.random.default_rng(0).standard_normal((count, WIDTH), np.float32)
    knn.neighbours(features, features[:BLOCK], k=K, chunk=CHUNK)  # compiles
    alone = peak()
    train = jnp.asarray(knn.pad_rows(features, CHUNK)).reshape(-1, CHUNK, WIDTH)

    @jax.jit
    def products(queries):
        add = lambda total, chunk: (total + jnp.matmul(queries, chunk.T, precision="highest").sum(), None)  # noqa: E731
        return jax.lax.scan(add, 0.0, train)[0]

    def bare(share):
        for start in range(0, len(share), BLOCK):
            products(knn.pad_rows(share[start : start + BLOCK], BLOCK)).block_until_ready()

    shares = np.array_split(features, rounds)
    bare(shares[0][:BLOCK])
    before = peak()
    times = [
        (rows.seconds(lambda s=share: knn.neighbours(features, s, k=K, chunk=CHUNK)), rows.seconds(lambda s=share: bare(s)))
        for share in shares
    ]
    ratio = statistics.median(a / b for a, b in times)
    return {
        "case": f"{K} nearest, {count:,} x {count:,} of {WIDTH}", "ratio": round(ratio, 3), "bar": 1.5,
        "seconds": round(sum(a for a, _ in times), 1), "peak_gib": round(alone + peak() - before, 2),
    }  # fmt: skip


def sweep(count, rounds):
    """Row of the linear probe's sweep, to the tolerance that chooses, against the costliest of its regularisers alone, fitted to the end.
    Variances fall as a power of the rank, as those of learnt features do."""
    import numpy as np

    from ssljax.evals import linear

    rng = np.random.default_rng(0)
    centres = rng.normal(size=(20, WIDTH))
    labels = rng.integers(0, 20, count)
    axes = np.linalg.qr(rng.normal(size=(WIDTH, WIDTH)))[0]
    features = ((centres[labels] + 10.0 * rng.normal(size=(count, WIDTH))) / np.arange(1, WIDTH + 1)) @ axes
    fit = lambda *regularisers, **more: linear.fit(features, labels, classes=20, regularisers=regularisers, **more)  # noqa: E731
    choose = lambda: fit(*linear.REGULARISERS, tolerance=linear.SWEEP_TOLERANCE)  # noqa: E731
    costliest = max(linear.REGULARISERS, key=lambda r: fit(r)["steps"][0])
    choose()
    times = [(rows.seconds(choose), rows.seconds(lambda: fit(costliest))) for _ in range(rounds)]
    ratio = statistics.median(a / b for a, b in times)
    return {
        "case": f"sweep of 12 regularisers, {count:,} x {WIDTH}, against one",
        "ratio": round(ratio, 3),
        "bar": 2.0,
        "seconds": round(sum(a for a, _ in times), 1),
    }


def main(argv):
    cli.parse(argv, FLAGS, __doc__)
    small = FLAGS.quick
    table = [neighbours(40_000 if small else 200_000, FLAGS.rounds), sweep(10_000, FLAGS.rounds)]  # the first's memory is the process's
    print("| case | time ratio | bar | seconds | peak GiB, bar 2 |\n| --- | --- | --- | --- | --- |")
    for row in table:
        print(f"| {row['case']} | {row['ratio']} | {row['bar']} | {row['seconds']} | {row.get('peak_gib', '')} |")
    table = [row | rows.origin() for row in table]
    rows.keep(table, FLAGS.out)
    if FLAGS.json:
        print(json.dumps(table))


if __name__ == "__main__":
    cli.command(main)

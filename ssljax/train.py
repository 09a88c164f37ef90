"""Pretrain: the only train loop. It knows no method; a config names one.

python -m ssljax.train --config configs/simclr_resnet_scenes.py:batch=256 --workdir runs/simclr
python -m ssljax.train --config configs/simclr_resnet_scenes.py --help              # every key of that config, one line each
python -m ssljax.train --config ... --workdir ... --config.method.temperature=0.2   # override any key

The same command, started again, resumes from the newest checkpoint in --workdir.
"""

import collections
import itertools
import pathlib
import time

from absl import flags

from ssljax import cli
from ssljax.errors import UserError

FLAGS = flags.FlagValues()
flags.DEFINE_string("workdir", None, "where checkpoints and metrics go; started again with the same one, a run resumes", flag_values=FLAGS)
flags.DEFINE_bool(
    "shrink", False, "run the config as a toy: tiny model, two steps, synthesised records. Does it run at all?", flag_values=FLAGS
)
flags.DEFINE_bool("distributed", False, "join the other processes of a TPU pod or a SLURM job", flag_values=FLAGS)
flags.DEFINE_string("profile", None, "FIRST:LAST, write a profile of these steps to WORKDIR/profile", flag_values=FLAGS)


def train(config, workdir, *, profile=None):
    """Run `config` (ConfigDict) to its last step in `workdir`. -> {"state": State, "metrics": last metrics, "program": Program}.

    Raises UserError for what a user can mend, before any array is made where that can be known.
    """
    # ------------------------------------------------------------------------------------------------------- check it all
    from ssljax import config as configs
    from ssljax import inputs
    from ssljax.data import pipeline, sources

    started = time.monotonic()
    built = configs.build(config)
    window = _profile_window(profile)
    sources.check(built.data.source, built.data.train)
    sources.check(built.data.source, built.data.test)
    tokenizer = inputs.make_tokenizer(built)

    import jax  # nothing above has touched a device

    from ssljax import checkpoint, metrics, program, sharding, trees

    mesh = sharding.make_mesh(config.mesh.to_dict(), batch=config.batch)
    lead = jax.process_index() == 0
    workdir = pathlib.Path(workdir)
    source = sources.open(built.data.source, built.data.train)

    # ---------------------------------------------------------------------------------------------- state: fresh or resumed
    checkpoints = checkpoint.Checkpoints(workdir / "checkpoints", keep=built.checkpoint.keep, every=built.checkpoint.every)
    first = checkpoints.latest() or 0
    feed = inputs.train_batches(config, built, source, tokenizer, min(first, config.steps - 1))
    raw = next(feed)  # shapes for the program; it is the first batch of the run as well
    run = program.make(config, built, mesh, raw, len(source))
    state = checkpoints.restore(run.shapes) if first else run.init()
    say = print if lead else lambda *_: None
    say(
        f"{config.method.name}: {trees.size(state.params) / 1e6:.2f} M parameters, {len(source)} examples of {built.data.source}, "
        f"batch {config.batch}, mesh {dict(mesh.shape)} on {mesh.size} x {mesh.devices.flat[0].device_kind}; "
        + (f"resumed at step {first} from {checkpoints.directory}" if first else f"steps 0 to {config.steps}")
    )

    label = inputs.label_of(built, source)
    if built.evals.every and label != built.data.label:
        say(
            f"config.data.label={built.data.label!r} is not in {source.name} (it has {source.labels() or 'no labels'}): judged by {label!r}"
        )

    # -------------------------------------------------------------------------------------------------------- instruments
    writer = metrics.Writer(workdir, wandb={"project": built.log.wandb} if built.log.wandb else None, active=lead)
    writer.resume(first)
    shapes = {k: jax.ShapeDtypeStruct((config.batch, *v.shape[1:]), v.dtype) for k, v in raw.items()}
    flops = metrics.count_flops(run.train_step, run.shapes, shapes)
    peak = metrics.peak_flops(mesh.devices.flat[0].device_kind, getattr(built.method.encoder, "dtype", "float32"))
    throughput = metrics.Throughput(config.batch, flops, mesh.size, peak)
    bar = metrics.Progress(config.steps, first, config.method.name, active=lead)
    stored = configs.to_dict(config)
    say(f"{flops / config.batch / 1e6:.1f} MFLOPs an image; {time.monotonic() - started:.1f} s to start")

    def evaluate(step):
        parts = {"train": built.evals.train_examples, "test": built.evals.test_examples}
        rows = {}
        for name, most in parts.items():
            part = sources.subset(sources.open(built.data.source, getattr(built.data, name)), most)
            rows[name] = inputs.features(built, run, state, part, tokenizer)
        numbers, reasons = inputs.judge(built.evals.names, built, run, state, source, rows["train"], rows["test"], tokenizer)
        writer.write(step, numbers)
        bar.write(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in numbers.items()))
        for name, reason in reasons.items():
            bar.write(f"step {step}: {name} does not apply: {reason}")
        throughput.pause()

    # ----------------------------------------------------------------------------------------------------------- the loop
    last, shown = {}, {}
    pending = collections.deque()  # bounds how far the host runs ahead of the devices
    bar.write("compiling the train step")
    with pipeline.prefetch(itertools.chain([raw], feed), run.put) as batches:
        stalled = batches.stall_seconds
        for step in range(first, config.steps):
            if window and step == window[0]:
                jax.profiler.start_trace(str(workdir / "profile"))

            state, last = run.step(state, next(batches))

            pending.append(last["loss"])
            if len(pending) > 2:
                jax.block_until_ready(pending.popleft())
            done = step + 1
            rates = throughput.update(done, batches.stall_seconds - stalled)
            stalled = batches.stall_seconds
            if done % built.log.every == 0 or done == config.steps:
                writer.write(done, {**last, **rates})
            _halt_if_not_finite(writer.latest, config.nan)
            shown |= {**writer.latest, **rates}  # an evaluation's line has no loss: the last one stands
            bar.update(done, shown, throughput.eta(config.steps))
            if window and done == window[1]:
                jax.block_until_ready(state)
                jax.profiler.stop_trace()
            if checkpoints.due(done) or done == config.steps:
                _halt_if_not_finite({"step": done, "loss": float(last["loss"])}, config.nan)  # never save it
                checkpoints.save(done, state, stored)
            if built.evals.every and (done % built.evals.every == 0 or done == config.steps):
                evaluate(done)

    # ---------------------------------------------------------------------------------------------------------------- end
    checkpoints.close()
    writer.close()
    bar.update(max(config.steps, first), {**shown, **writer.latest})
    bar.close()
    if first >= config.steps:
        say(f"nothing to do: {checkpoints.directory} is at step {first} of {config.steps}; raise --config.steps to go on")
    else:
        say(f"done: {config.steps} steps in {time.monotonic() - started:.0f} s; evaluate it with\n"
            f"  python -m ssljax.evaluate --checkpoint {workdir}")  # fmt: skip
    return {"state": state, "metrics": last, "program": run}


def _halt_if_not_finite(latest, policy):
    import math

    if policy == "halt" and not math.isfinite(latest.get("loss", 0.0)):
        raise UserError(
            f"the loss is {latest['loss']} at step {latest['step']}: stopped, and nothing of it was saved. Lower config.optim.lr.peak, "
            "set config.optim.clip_norm, or look at gradient_norm in metrics.jsonl"
        )


def _profile_window(profile):
    if profile is None:
        return None
    try:
        first, last = (int(n) for n in profile.split(":"))
    except ValueError:
        raise UserError(f"--profile={profile!r}: expected FIRST:LAST, two steps, e.g. 10:15") from None
    return first, last


# ------------------------------------------------------------------------------------------------------- the command line
def main(argv):
    from ssljax import config as configs

    config = cli.parse_config(argv, FLAGS, __doc__)
    if not FLAGS.workdir:
        raise UserError("--workdir is missing: a directory for checkpoints and metrics, e.g. --workdir runs/simclr")
    if FLAGS.shrink:
        config = configs.shrink(config)
    configs.build(config)  # all that can be wrong in it, before the processes meet
    cli.start_distributed(FLAGS.distributed)
    train(config, FLAGS.workdir, profile=FLAGS.profile)


if __name__ == "__main__":
    cli.command(main)

"""Pretrain: the only train loop. It knows no method; a config names one.

python -m ssljax.train --config configs/simclr_resnet_scenes.py:batch=256 --workdir runs/simclr
python -m ssljax.train --config configs/simclr_resnet_scenes.py --help              # every key of that config, one line each
python -m ssljax.train --config ... --workdir ... --config.method.temperature=0.2   # override any key

The same command, started again, resumes from the newest checkpoint in --workdir, with the programs compiled before, which are kept in
WORKDIR/compiled (JAX_COMPILATION_CACHE_DIR names another place). SIGTERM or Ctrl-C saves first and exits with 75.
"""

import collections
import contextlib
import dataclasses
import itertools
import pathlib
import time

from absl import flags

from ssljax import cli
from ssljax.errors import Preempted, UserError

PARTS = {"read": "input stall", "save": "checkpoint", "end": "checkpoint"}  # phases of the loop, as the goodput line calls them

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "workdir",
    None,
    "where checkpoints and metrics go; started again with it, a run resumes. gs://BUCKET/NAME: checkpoints; the rest in runs/NAME",
    flag_values=FLAGS,
)
flags.DEFINE_bool(
    "shrink", False, "run the config as a toy: tiny model, two steps, synthesised records. Does it run at all?", flag_values=FLAGS
)
flags.DEFINE_bool("distributed", False, "join the other processes of a TPU pod or a SLURM job", flag_values=FLAGS)
flags.DEFINE_bool("allow_changes", False, "resume although the config or the data are not the checkpoint's", flag_values=FLAGS)
flags.DEFINE_integer("peer_timeout", 20, "seconds after which a process that died ends all the others", flag_values=FLAGS)
flags.DEFINE_string("profile", None, "FIRST:LAST, write a profile of these steps to WORKDIR/profile", flag_values=FLAGS)


def train(config, workdir, *, profile=None, allow_changes=False, peer_timeout=20):
    """Run `config` (ConfigDict) to its last step in `workdir`. -> {"state": State, "metrics": last metrics, "program": Program}.

    Raises UserError for what a user can mend, before any array is made where that can be known; Preempted after SIGTERM or SIGINT.
    """
    with contextlib.ExitStack() as held:  # the lock, threads, signal handlers: let go of however the run ends
        return _train(config, *places(workdir), held, profile, allow_changes, peer_timeout)


def places(workdir):
    """-> (folder of lock, metrics and lists, a local path; where checkpoints go, a local path or a gs:// one).

    A bucket keeps checkpoints only: it knows neither locks nor appending. The rest is under runs/ of this machine, by the same name.
    """
    remote = "://" in str(workdir)
    local = pathlib.Path("runs", str(workdir).rstrip("/").rpartition("/")[2]) if remote else pathlib.Path(workdir)
    return local, f"{str(workdir).rstrip('/')}/checkpoints" if remote else local / "checkpoints"


def _train(config, workdir, folder, held, profile, allow_changes, peer_timeout):
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

    from ssljax import checkpoint, encoder, faults, initialise, metrics, models, program, sharding, trees

    reference = metrics.Reference(built.log.reference) if built.log.reference else None
    mesh = sharding.make_mesh(config.mesh.to_dict(), batch=config.batch)
    lead = jax.process_index() == 0
    say = print if lead else lambda *_: None
    source = sources.open(built.data.source, built.data.train)
    frozen = {name: trees.sha256(weights) for name, weights in built.method.weights().items()}  # not a tokenizer? said here

    # ---------------------------------------------------------------------------------------------- state: fresh or resumed
    killed = held.enter_context(faults.lock(workdir)) if lead else ""
    if killed:
        say(f"{workdir} was left by {killed}, which did not end by itself")
    checkpoints = checkpoint.Checkpoints(folder, **vars(built.checkpoint))
    first = checkpoints.latest() or 0
    stored, about = configs.to_dict(config), {"data": source.fingerprint, "examples": len(source), "frozen": frozen}
    if first:
        changes = configs.differences(checkpoints.config(first), stored)
        if checkpoints.info(first).get("data", source.fingerprint) != source.fingerprint:
            changes.append(f"the data: {source.name} does not hold the records that the run began with")
        if checkpoints.info(first).get("frozen", frozen) != frozen:
            changes.append(f"{', '.join(frozen)}: not the weights that the run began with")
        if changes and not allow_changes:
            raise UserError(
                f"{checkpoints.directory} is at step {first} of another run: {'; '.join(changes)}. Nothing was touched; use another "
                "--workdir, or go on regardless with --allow_changes"
            )
        if changes:
            say(f"resuming in spite of changes: {'; '.join(changes)}")
    feed = inputs.train_batches(config, built, source, tokenizer, min(first, config.steps - 1), workdir)
    raw = next(feed)  # shapes for the program; it is the first batch of the run as well
    run = program.make(config, built, mesh, raw, len(source))
    restoring = time.monotonic()
    state = checkpoints.restore(run.shapes) if first else run.init()
    restored = time.monotonic()
    if built.init.checkpoint and not first:
        state, report = initialise.warm_start(state, encoder.restore(built.init.checkpoint), built.init.drop)
        say(f"weights of {built.init.checkpoint}: " + ", ".join(f"{len(names)} {what}" for what, names in report.items())
            + (f" ({', '.join(report['fresh'][:5])}{' ...' if len(report['fresh']) > 5 else ''})" if report["fresh"] else ""))  # fmt: skip
    say(
        f"{config.method.name}: {trees.size(state.params) / 1e6:.2f} M parameters, {len(source)} examples of {built.data.source}, "
        f"batch {config.batch}, mesh {dict(mesh.shape)} on {mesh.size} x {mesh.devices.flat[0].device_kind}; "
        + (f"resumed at step {first} from {checkpoints.directory}" if first else f"steps 0 to {config.steps}")
    )
    if note := sources.resume_note(source):
        say(note)

    label = inputs.label_of(built, source)
    if built.evals.every and label != built.data.label:
        say(
            f"config.data.label={built.data.label!r} is not in {source.name} (it has {source.labels() or 'no labels'}): judged by {label!r}"
        )

    # -------------------------------------------------------------------------------------------------------- instruments
    writer = metrics.Writer(workdir, wandb={"project": built.log.wandb} if built.log.wandb else None, active=lead)
    spent = collections.Counter(checkpoints.info(first).get("goodput") if first else {})
    spent["lost to restarts"] += (lost := writer.resume(first))
    goodput = metrics.Goodput(spent, since=started)
    if first:
        goodput.move(restored - restoring, "start", "restore")
    if lost:
        say(f"{lost:.0f} s of steps behind the checkpoint are taken again")
    shapes = {k: jax.ShapeDtypeStruct((config.batch, *v.shape[1:]), v.dtype) for k, v in raw.items()}
    with models.passes() as passes:
        flops = metrics.count_flops(run.train_step, run.shapes, shapes)
    peak = metrics.peak_flops(mesh.devices.flat[0].device_kind, getattr(built.method.encoder, "dtype", "float32"))
    throughput = metrics.Throughput(config.batch, flops, mesh.size, peak)
    bar = metrics.Progress(config.steps, first, config.method.name, active=lead)
    alarms = metrics.Alarms(after=config.steps // 10)
    each = ", ".join(f"{n} of {h} x {w}" for n, h, w, _ in passes)
    say(f"{flops / config.batch / 1e6:.1f} MFLOPs an image; forward passes a step: {len(passes)} ({each})")
    say(f"{time.monotonic() - started:.1f} s to start")

    def evaluate(step):
        parts = {"train": built.evals.train_examples, "test": built.evals.test_examples}
        rows = {}
        for name, most in parts.items():
            part = sources.subset(sources.open(built.data.source, getattr(built.data, name)), most)
            rows[name] = inputs.features(built, run, state, part, tokenizer, pairs=name == "test")
        names = dict.fromkeys((*built.evals.names, "rankme"))  # which tells a collapse, whatever else is asked
        numbers, reasons = inputs.judge(names, built, run, state, source, rows["train"], rows["test"], tokenizer)
        numbers |= metrics.spread(rows["test"]["features"]) if "features" in rows["test"] else {}
        numbers = {k: v for k, v in numbers.items() if not k.endswith("_ci95")}
        writer.write(step, numbers)
        bar.write(f"step {step}: " + ", ".join(f"{k} {v:.3f}" for k, v in numbers.items()))
        for name, reason in reasons.items():
            bar.write(f"step {step}: {name} does not apply: {reason}")
        for alarm in alarms(step, numbers, patience=1):
            bar.write(alarm)
        throughput.pause()
        return numbers

    def starts_epoch(step):
        return step * config.batch // len(source) != (step - 1) * config.batch // len(source)

    def refresh(state):
        rows = inputs.features(built, run, state, source, tokenizer)
        throughput.pause()
        return jax.tree.map(lambda x, shape: jax.device_put(x, shape.sharding), built.method.refresh(state, rows), run.shapes)

    def settle(most):
        """Waits until at most so many steps are under way; halts on too many in a row that were not finite."""
        while len(pending) > most:
            step, numbers, batch = pending.popleft()
            if skipped := not_finite(step, numbers):
                bar.write(skipped)
            if not_finite.too_many:
                before = dataclasses.replace(state, step=state.step * 0 + (step - 1))  # the schedules and draws of that step
                norms = jax.device_get(run.norms(before, batch))
                raise faults.halt(workdir if lead else None, step, numbers, run.fetch(batch["id"]), norms)

    # ----------------------------------------------------------------------------------------------------------- the loop
    last, shown, seen = {}, {}, None
    pending = collections.deque()  # (step, metrics, batch): bounds how far the host runs ahead of the devices
    not_finite = faults.NonFinite(config.nan)
    stop = held.enter_context(faults.Stop())
    watch = held.enter_context(faults.Watchdog.of_run(peer_timeout / 2))
    batches = held.enter_context(pipeline.prefetch(itertools.chain([raw], feed), run.put, built.data.prefetch, busy=feed.busy))
    bar.write("compiling the train step")
    stalled = batches.stall_seconds

    def phase(name, step):
        watch(name, step)
        goodput("compile" if name == "step" and step == first else PARTS.get(name, name))

    for step in range(first, config.steps):
        if window and step == window[0]:
            jax.profiler.start_trace(str(workdir / "profile"))

        phase("read", step)
        batch = next(batches)
        if built.method.refresh and starts_epoch(step):
            phase("refresh", step)
            state = refresh(state)
        phase("step", step)
        state, last = run.step(state, batch)

        done = step + 1
        pending.append((done, last, batch))
        settle(2)
        goodput("step")  # compiling is over
        rates = throughput.update(done, batches.stall_seconds - stalled)
        stalled = batches.stall_seconds
        rates |= batches.blame(rates["input_stall"]) | {"bad_examples": feed.bad.count} if rates else {}
        for line in feed.bad.news():
            bar.write(line)
        if done % built.log.every == 0 or done == config.steps:
            writer.write(done, {**last, **rates})
        if writer.latest is not seen and "loss" in writer.latest:
            seen = writer.latest
            for alarm in alarms(seen["step"], seen):
                bar.write(alarm)
            if reference and (line := reference(seen["step"], seen)):
                bar.write(line)
        shown |= {**writer.latest, **rates}  # an evaluation's line has no loss: the last one stands
        bar.update(done, shown, throughput.eta(config.steps))
        if window and done == window[1]:
            jax.block_until_ready(state)
            jax.profiler.stop_trace()
        stopped = stop.reached(done) and done < config.steps
        if checkpoints.due(done) or done == config.steps or stopped:
            settle(0)  # what was not finite is seen before anything of it could be saved
            phase("save", step)
            checkpoints.save(done, state, stored, {**about, "goodput": goodput.seconds()})
        if stopped:
            break
        if built.evals.every and (done % built.evals.every == 0 or done == config.steps):
            phase("evaluation", step)
            checkpoints.score(done, evaluate(done))

    # ---------------------------------------------------------------------------------------------------------------- end
    phase("end", config.steps)
    batches.close()
    checkpoints.close()
    writer.close()
    if first < config.steps and stopped:
        bar.close()
        say(goodput.text())
        raise Preempted(f"stopped by a signal at step {done} of {config.steps}, which is saved; the same command goes on from there")
    bar.update(max(config.steps, first), {**shown, **writer.latest})
    bar.close()
    if first >= config.steps:
        say(f"nothing to do: {checkpoints.directory} is at step {first} of {config.steps}; raise --config.steps to go on")
    else:
        say(goodput.text())
        say(f"done: {config.steps} steps in {time.monotonic() - started:.0f} s; evaluate it with\n"
            f"  python -m ssljax.evaluate --checkpoint {checkpoints.directory.parent}")  # fmt: skip
    return {"state": state, "metrics": last, "program": run}


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
    cli.start_distributed(FLAGS.distributed, FLAGS.peer_timeout)
    cli.keep_programs(f"{FLAGS.workdir.rstrip('/')}/compiled")
    train(config, FLAGS.workdir, profile=FLAGS.profile, allow_changes=FLAGS.allow_changes, peer_timeout=FLAGS.peer_timeout)


if __name__ == "__main__":
    cli.command(main)

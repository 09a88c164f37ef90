"""Eight fake CPU devices for every test, and what many tests share: shrunk configs, raw batches, compiled programs."""

import ctypes
import functools
import gc
import os
import pathlib

from launch.bench import faults
from ssljax import cli

os.environ["XLA_FLAGS"] = faults.SOON
cli.fake_devices(8)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import jax  # noqa: E402
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from ssljax import config as configs  # noqa: E402
from ssljax import metrics  # noqa: E402

ROOT = pathlib.Path(__file__).resolve().parents[1]
jax.config.update("jax_compilation_cache_dir", str(ROOT / ".cache" / "jax"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)

CONFIGS = sorted((ROOT / "configs").glob("*.py"))
MESHES = {"1": {"data": 1}, "data=8": {"data": 8}, "data=4,fsdp=2": {"data": 4, "fsdp": 2}}
MESHES["data=2,fsdp=2,tensor=2"] = {"data": 2, "fsdp": 2, "tensor": 2}


def small_config(path, **changes):
    """A config file, shrunk by the common switch, with a batch that eight devices divide."""
    config = configs.shrink(configs.load(path))
    config.batch = 16
    config.steps = 20
    config.update(changes)
    return config


def raw_batch(config, step=0):
    """A raw batch of this config as the loop would get it (crop="device"), from numpy alone."""
    rng = np.random.default_rng([config.seed, step])
    batch, side = config.batch, config.data.image_size
    raw = {
        # Smooth pictures, not noise: neighbouring pixels agree.
        "image": np.kron(rng.integers(0, 256, (batch, side // 4, side // 4, 3)), np.ones((1, 4, 4, 1))).astype(np.uint8),
        "id": rng.permutation(1000)[:batch].astype(np.int32),
        "epoch": np.zeros(batch, np.int32),
        "valid": np.ones(batch, bool),
        "label": rng.integers(0, 4, batch).astype(np.int32),
    }
    if "text" in config.method:
        raw["text"] = rng.integers(1, config.method.text.vocab_size, (batch, config.method.text.length)).astype(np.int32)
    return raw


def equations(jaxpr):
    """Every equation of a jaxpr, those of what it calls as well."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in metrics.subjaxprs(equation.params):
            yield from equations(inner)


@functools.cache
def program_of(path, mesh):
    """(config, built, program) of a shrunk config on one of MESHES; compiled once for all tests. Pictures keep their colours but for the
    methods of SPINE: a third of the time to compile is the colours', which the step of every method shares."""
    from ssljax import program, sharding

    config = small_config(path)
    config.data.crop = "device"
    if path not in [METHODS[name] for name in SPINE]:
        faults.without_colours(config)
    built = configs.build(config)
    sizes = MESHES[mesh]
    count = int(np.prod(list(sizes.values())))
    made = sharding.make_mesh(sizes, batch=config.batch, devices=jax.devices()[:count])
    return config, built, program.make(config, built, made, raw_batch(config), examples=64)


METHODS = faults.small_configs()
# One method of each family that the house was built on. What depends on the loop, not on the method, and is dear, is swept over these.
SPINE = ("dino", "mae", "siglip", "simclr")


@pytest.fixture(autouse=True)
def room_for_programs():
    """A compiled program is mapped memory, and Linux gives a process 65,530 maps: out of them LLVM ends it. Well before, all are let go,
    and the allocator gives back what it keeps of them: two processes would grow to 16 GB."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 20_000:
        program_of.cache_clear()
        jax.clear_caches()
        gc.collect()
        if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):  # glibc's
            trim(0)


@pytest.fixture
def blocks_in_a_loop(monkeypatch):
    """As on one device, of models of more than 24 blocks or recomputed ones; on several CPU ones all are laid out (`layers.stacked`)."""
    monkeypatch.setattr(jax, "device_count", lambda: 1)


def pytest_collection_modifyitems(config, items):
    """Which tests are quick, and which run in one process, where there are several: those of a file, which share fixtures; in sweeps those
    of one method, which share its programs, or each by itself."""
    if config.option.markexpr == "quick":
        config.hook.pytest_deselected(items=[item for item in items if item.get_closest_marker("thorough")])
        items[:] = [item for item in items if not item.get_closest_marker("thorough")]
    items.sort(
        key=lambda item: item.path.name != "test_survival.py"
    )  # the longest begins first, so that no process waits for it at the end
    for item in items:
        callspec = getattr(item, "callspec", None)
        name = None
        if item.path.name == "test_contract.py" and callspec:
            name = callspec.params.get("name") or callspec.params.get("method_config")
        elif item.name.startswith(("test_a_config_runs", "test_the_step_of_every_config")):
            name = callspec.id
        item.add_marker(pytest.mark.xdist_group(name or item.path.name))


def pytest_terminal_summary(terminalreporter):
    """What the golden runner has to say, from whichever process it ran in."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for key, value in getattr(report, "user_properties", ()):
                if key == "golden" and report.when == "call":
                    terminalreporter.write_line(value)


@pytest.fixture(params=SPINE)
def method_config(request):
    """Path of a small config of each method of the spine in turn."""
    return METHODS[request.param]

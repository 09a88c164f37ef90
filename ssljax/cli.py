"""The command line of every entry point: absl flags, a config with overrides, `--help` that lists its keys, one-line errors."""

import ctypes
import faulthandler
import importlib.metadata
import importlib.util
import os
import pathlib
import platform
import re
import sys
import traceback

from absl import flags, logging

from ssljax import config as configs
from ssljax import faults
from ssljax.errors import Preempted, UserError


def command(main, keep=True):
    """Run an entry point: a UserError is one line on stderr and exit code 2, a run that was told to stop exit code 75.

    keep: `keep_memory`, on a CPU; not for what shall be measured as in a program that is not ssljax's."""
    if not faulthandler.is_enabled():  # JAX ends a run whose peer died by SIGABRT: this shows the line of the loop that it was at
        faulthandler.enable(sys.__stderr__)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # ahead of any import that might pull TensorFlow in
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
    logging.set_verbosity(logging.ERROR)  # the libraries' remarks; ours go to the progress bar
    fake_devices()
    if keep and not _accelerators():
        keep_memory()
    try:
        main(sys.argv)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        faults.leave(2)
    except Preempted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(Preempted.CODE)
    except Exception:
        traceback.print_exc()
        faults.leave(1)


def _accelerators():
    """Whether JAX may find some here: asked before it starts."""
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    return os.environ.get("JAX_PLATFORMS") != "cpu" and bool(plugins or importlib.util.find_spec("libtpu"))


def keep_memory():
    """What glibc frees stays with this process. XLA's CPU runtime asks for all of a step's temporaries anew at every step; given back to
    the system in between, they come as half a million pages to be zeroed (ViT-S at 224, batch 16), a fifth to a third of the step.

    And it comes in huge pages where Linux gives them to who asks (`transparent_hugepage` at madvise, as many systems have it): a tenth of
    the step. What is asked for here is addresses, half as many as there are bytes of memory; no memory until something is written."""
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    mmap_max, trim_threshold, arena_max = -4, -1, -8
    for option, value in ((mmap_max, 0), (trim_threshold, -1), (arena_max, 1)):  # of other arenas large blocks are always mapped
        libc.mallopt(option, value)
    asks = "[madvise]" in _text("/sys/kernel/mm/transparent_hugepage/enabled")  # otherwise pages are huge as it is, or never
    if not asks or os.sysconf("SC_PAGE_SIZE") != 2**12 or _text("/proc/sys/vm/overcommit_memory") == "2":
        return  # of larger pages huge ones are too large, 512 MiB; or addresses count as memory
    libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
    libc.madvise.argtypes, advise_huge, huge = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int], 14, 2**21
    size = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 // huge * huge
    block = libc.malloc(size)
    if block:  # freed, it is what malloc takes from next, advised as it is
        libc.madvise(-(-block // huge) * huge, size - huge, advise_huge)
        libc.free(block)


def _text(path):
    """What a file of the system says; "" where there is none."""
    path = pathlib.Path(path)
    return path.read_text().strip() if path.exists() else ""


THREADS = 32  # of the pool that XLA runs fake devices on, at least


def fake_devices(count=None):
    """Before JAX starts: `count` fake CPU devices, or what fake ones XLA_FLAGS asks for already, made safe.

    A collective holds a thread of every device until all have come, and XLA's pool has one a device: two at a time, or one beside a
    parallel convolution, can wait for ever. Hence more threads, and convolutions in one. Never fewer than THREADS: some sums are split by
    how many there are, and a run keeps its bits when its devices are those of one process, or of eight."""
    xla, name = os.environ.get("XLA_FLAGS", ""), "--xla_force_host_platform_device_count="
    if count is not None:
        xla = f"{re.sub(name + r'[0-9]+', '', xla)} {name}{count}"
    found = re.search(name + r"(\d+)", xla)
    if found:
        os.environ.setdefault("PJRT_NPROC", str(max(4 * int(found[1]), THREADS)))
        if "xla_cpu_multi_thread_eigen" not in xla:
            xla += " --xla_cpu_multi_thread_eigen=false"
        os.environ["XLA_FLAGS"] = xla.strip()


def parse(argv, values, doc, *, words=False):
    """absl flags. `values`: the entry's FlagValues; doc: what --help prints first; words: arguments that are no flags are wanted.
    -> these, a list. Raises UserError."""
    if {"--help", "-h", "-help"} & set(argv):
        print("\n".join([doc.strip(), "", "flags:", *_flag_lines(values)]))
        raise SystemExit(0)
    values.unparse_flags()  # what an earlier call in this process was given is not this one's
    try:
        left = values(argv)
    except flags.Error as error:
        raise UserError(f"{error}; --help lists all flags") from None
    if len(left) > 1 and not words:
        raise UserError(f"unexpected argument {left[1]!r}; flags look like --workdir DIR")
    return left[1:]


def parse_config(argv, values, doc):
    """The same with `--config FILE[:ARGUMENT]` and `--config.KEY=VALUE`, any number of them -> ConfigDict. Raises UserError."""
    path, overrides, rest = "", [], []
    words = iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            path = value if equals else next(words, "")
        elif name.lstrip("-").startswith("config.") and name.startswith("-"):
            overrides.append((name.lstrip("-").removeprefix("config."), value if equals else next(words, "")))
        else:
            rest.append(word)
    config = configs.load(*path.split(":", 1)) if path else None
    if {"--help", "-h", "-help"} & set(rest):
        shown = sorted(str(p) for p in pathlib.Path("configs").glob("*.py")) or ["none in ./configs"]
        doc += "\nconfigs: " + ", ".join(shown) + "\n(--config FILE --help lists the keys of a config)"
        if config is not None:
            rows = configs.describe(config)
            doc += f"\n\nkeys of {path}:\n" + "\n".join(f"  --config.{key}={value!r}  {help}" for key, value, help in rows)
    parse(rest, values, doc)
    if config is None:
        raise UserError("--config is missing: a file of configs/, e.g. --config configs/simclr_resnet_scenes.py")
    for key, value in overrides:
        configs.override(config, key, value)
    return config


def start_distributed(asked, peer_timeout=20):
    """Join the other processes: those that SSLJAX_COORDINATOR names, or, if asked, those that JAX finds on a pod or in SLURM.

    peer_timeout: seconds of silence after which JAX takes a process for dead and ends all of them."""
    import jax

    coordinator = os.environ.get("SSLJAX_COORDINATOR")
    patience = dict(heartbeat_timeout_seconds=peer_timeout, shutdown_timeout_seconds=120)  # at the end a slow one is waited for
    if coordinator:
        if coordinator.startswith("localhost:") and os.environ.get("JAX_PLATFORMS") == "cpu":
            compile_once()
        count, index = int(os.environ["SSLJAX_NUM_PROCESSES"]), int(os.environ["SSLJAX_PROCESS_ID"])
        jax.distributed.initialize(coordinator, count, index, **patience)
    elif asked:
        jax.distributed.initialize(**patience)


def keep_programs(folder):
    """What XLA compiles for this process is kept in `folder` (or a gs:// one), and found there by the next start. JAX's own variables come
    first: JAX_COMPILATION_CACHE_DIR names another folder, JAX_ENABLE_COMPILATION_CACHE=false keeps none."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(folder))


def compile_once():
    """Of processes that share a machine's CPU, the first compiles and sends the others the program.

    Otherwise each compiles it, all at once; and since JAX names a kept program by the process as well as by the processor, only the first,
    which alone writes, would find it again: it would be at its first collective while the others compile for longer than gloo waits."""
    import jax
    from jax._src import cache_key  # there is no public name for what a program's name is made of

    if not hasattr(cache_key, "_hash_accelerator_config"):  # another JAX: as it was without a cache
        jax.config.update("jax_enable_compilation_cache", False)
    else:
        found = re.search(r"^flags.*", _text("/proc/cpuinfo"), re.M)
        processor = found[0] if found else platform.machine()
        cache_key._hash_accelerator_config = lambda digest, devices: digest.update(processor.encode())
        jax.config.update("jax_share_binary_between_hosts", True)


def _flag_lines(values):
    return [f"  --{name}  {values[name].help}" for name in values]

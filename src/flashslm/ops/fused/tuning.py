"""Triton's autotuned kernels are tuned once for a GPU and a set of versions, and compiled on all cores.

Triton keeps timings in memory: every process compiles and times every configuration of every kernel again, one after
the other. Here the winner of each kernel and tuning key is a small JSON file. It holds for configurations with a
`pre_hook` too, which Triton's own disk cache leaves out. A number of heads without a winner takes that of the nearest
one, up to twice or half as many, and a number of rows that of any other: a model of another width starts without
tuning. Of a kernel without either all configurations are compiled together before they are timed. Of processes that
need one at the same time, one tunes.
"""

import hashlib
import json
import logging
import math
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from flashslm.hardware import usable_cores
from flashslm.infra.state_files import locked_file
from flashslm.ops.kernel_cache import cache_directory
from flashslm.ops.timing_lock import TIMING

logger = logging.getLogger(__name__)

WARM_UP_MS, TIMED_MS = 5, 25  # of each configuration; Triton's 25 and 100 choose the same ones
HEAD_COUNTS = {"H", "HV", "nheads"}  # in tuning keys of fla and mamba-ssm: how often a kernel's work is repeated
LOCK = "tuning.lock"  # beside the winners of a kernel: held by the process that tunes it
# Blocks of rows, in the keys of fla's norms: one number's winner is as good for another (docs/log.md, 2026-11-28).
ROW_COUNTS = {"NB"}
NEAR = 2.0  # the largest ratio of two numbers of heads that share a winner


@cache
def install() -> None:
    """Patch Triton's autotuner and point its caches to ours; to be called before a library with kernels is imported.

    With TRITON_CACHE_AUTOTUNING set mamba-ssm keeps all configurations under deterministic algorithms as well.
    """
    root = cache_directory()
    os.environ["TRITON_CACHE_DIR"] = str(root / "triton")
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(root / "inductor")
    os.environ["TRITON_CACHE_AUTOTUNING"] = "1"
    from triton.backends.nvidia import compiler
    from triton.runtime.autotuner import Autotuner

    # Where ptxas refuses a configuration, Triton prints a reproducer and the tuner continues.
    compiler.print = lambda *values, **_: logger.debug(" ".join(map(str, values)))
    Autotuner.check_disk_cache = _look_up_or_tune
    Autotuner._bench = _compile_together_first(Autotuner._bench)


def _look_up_or_tune(tuner: Any, tuning_key: Any, configs: list[Any], bench_fn: Any) -> bool:
    """In place of Autotuner.check_disk_cache. Returns whether the winner was known."""
    file = _winner_file(tuner, tuning_key, configs)
    if _take_winner(tuner, tuning_key, file, configs):
        return True
    with _alone(file.with_name(LOCK)):
        if _take_winner(tuner, tuning_key, file, configs):
            return True
        tuner.flashslm_uncompiled = configs
        with TIMING:
            bench_fn()
        _write_winner(file, tuner, tuning_key)
    return False


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Once no other process tunes the kernel: they would disturb each other's times. At once where the file system
    of the cache has no locks.
    """
    with ExitStack() as held:
        with suppress(OSError):
            held.enter_context(locked_file(lock))
        yield


def _take_winner(tuner: Any, tuning_key: Any, file: Path, configs: list[Any]) -> bool:
    """Whether there is one on disk, which the tuner then has."""
    winner = next((w for f in (file, *_near(file)) if (w := _read_winner(f, configs)) is not None), None)
    if winner is not None:
        tuner.cache[tuning_key] = winner
        tuner.configs_timings = {winner: 0.0}
    return winner is not None


def _winner_file(tuner: Any, tuning_key: Any, configs: list[Any]) -> Path:
    """A directory by what decides (the kernel's source with that of all it calls, the tuning key, the configurations),
    in it a file by the numbers of heads, such as 8-8.json.
    """
    kernel = tuner.fn
    while not hasattr(kernel, "cache_key"):
        kernel = kernel.fn
    heads = [i for i, name in enumerate(tuner.keys) if name in HEAD_COUNTS]
    rows = [i for i, name in enumerate(tuner.keys) if name in ROW_COUNTS]
    others = tuple(value for i, value in enumerate(tuning_key) if i not in (*heads, *rows))
    parts = [kernel.cache_key, str(others), *map(str, configs)]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:32]
    name = "-".join(str(tuning_key[i]) for i in heads) or "any"
    return cache_directory() / "winners" / f"{tuner.base_fn.__name__}.{digest}" / f"{name}.json"


def _near(file: Path) -> list[Path]:
    """Winners for other numbers of heads, the nearest first."""
    distances = {other: _distance(file.stem, other.stem) for other in file.parent.glob("*.json")}
    return sorted((other for other in distances if distances[other] <= math.log(NEAR)), key=lambda o: (distances[o], o))


def _distance(heads: str, others: str) -> float:
    """The largest logarithm of a ratio of two numbers of heads."""
    if heads == "any" or others == "any":
        return 0.0 if heads == others else math.inf
    pairs = zip(map(int, heads.split("-")), map(int, others.split("-")), strict=True)
    return max(abs(math.log(a / b)) for a, b in pairs)


def _read_winner(file: Path, configs: list[Any]) -> Any | None:
    try:
        name = json.loads(file.read_text(encoding="utf-8"))["config"]
    except (OSError, ValueError, KeyError):
        return None
    return next((config for config in configs if str(config) == name), None)


def _write_winner(file: Path, tuner: Any, tuning_key: Any) -> None:
    """Whole or not at all: several processes may tune the same kernel."""
    winner = tuner.cache[tuning_key]
    timings = {str(config): _median_ms(timing) for config, timing in tuner.configs_timings.items()}
    found = {"kernel": tuner.base_fn.__name__, "key": str(tuning_key), "config": str(winner), "median_ms": timings}
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_suffix(f".{os.getpid()}.partial")
    partial.write_text(json.dumps(found, indent=1), encoding="utf-8")
    partial.replace(file)
    logger.info("tuned %s for %s: %s", found["kernel"], found["key"], found["config"])


def _median_ms(timing: Any) -> float | None:
    median = timing[0] if isinstance(timing, list | tuple) else timing
    return None if median == float("inf") else float(median)


def _compile_together_first(bench: Any) -> Any:
    def _bench(tuner: Any, *args: Any, config: Any, **meta: Any) -> Any:
        if tuner._do_bench is None:
            tuner._do_bench = _time_kernel
        configs = tuner.__dict__.pop("flashslm_uncompiled", None)
        if configs:
            _compile_together(tuner, configs, args, meta)
        return bench(tuner, *args, config=config, **meta)

    return _bench


def _compile_together(tuner: Any, configs: list[Any], args: tuple[Any, ...], meta: dict[str, Any]) -> None:
    """Compile every configuration in a pool of threads; one that fails is met again, and left out, when it is timed."""
    from triton.runtime._async_compile import AsyncCompileMode

    with ThreadPoolExecutor(usable_cores()) as pool, AsyncCompileMode(pool, ignore_errors=True):
        for config in configs:
            tuner.fn.run(*args, **{**meta, **config.all_kwargs(), "warmup": True})


def _time_kernel(kernel_call: Any, quantiles: Any) -> Any:
    from triton.testing import do_bench

    return do_bench(kernel_call, warmup=WARM_UP_MS, rep=TIMED_MS, quantiles=quantiles)

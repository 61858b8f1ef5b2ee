"""Time the demo on this machine: a first run from nothing, then the same command again.

    .venv/bin/python benchmarks/demo.py [--repeats 3]

Writes benchmarks/results/demo_<hardware>_<date>.json: durations, peak memory of every process of the run and of the
stack, the run's own figures, command, commit, device, versions. `first` and `again` are the runs of median duration;
`first_wall_s` and `again_wall_s` have all of them. The last line of stdout is that record.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import psutil

from flashslm.benchmarking.options import COUNT, before_work, script_parser
from flashslm.benchmarking.record import result_name, write_record
from flashslm.hardware import device_fingerprint
from flashslm.infra.stack import embedded_stack
from flashslm.infra.state_files import require_writable
from flashslm.launch.local.run_directory import environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
RECIPE = "configs/demo.yaml"
VERSIONS = ("torch", "kfp", "mlflow", "optuna", "transformers")


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--repeats", type=COUNT, default=3)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    repeats = parser.parse_args(arguments).repeats
    with before_work(parser):
        output = require_writable(RESULTS / f"{result_name('demo', 'cpu')}.json")
    firsts, agains = zip(*(first_and_again() for _ in range(repeats)), strict=True)
    facts = environment()
    device = device_fingerprint("cpu")
    record = {
        "subject": "demo",
        "command": f"python benchmarks/demo.py --repeats {repeats}",
        "timed": f"flashslm run --config {RECIPE}",
        "commit": facts["commit"],
        "device": device.model_dump() | {"memory_bytes": psutil.virtual_memory().total},
        "versions": {name: facts["packages"][name] for name in VERSIONS} | {"python": facts["python"]},
        "repeats": repeats,
        "date": str(date.today()),
        "first_wall_s": [run["wall_s"] for run in firsts],
        "again_wall_s": [run["wall_s"] for run in agains],
        "first": median_run(firsts),
        "again": median_run(agains),
        "venv_bytes": sum(file.lstat().st_size for file in Path(sys.prefix).rglob("*") if not file.is_symlink()),
    }
    write_record(output, record)
    print(json.dumps(record))


def first_and_again() -> tuple[dict[str, Any], dict[str, Any]]:
    """The demo in a new directory with a stack of its own, then the same command there."""
    with tempfile.TemporaryDirectory(prefix="flashslm-demo-") as directory:
        home = Path(directory) / ".flashslm"
        try:
            return timed_run(Path(directory), home), timed_run(Path(directory), home)
        finally:
            embedded_stack.down(home)


def median_run(runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    return sorted(runs, key=lambda run: float(run["wall_s"]))[len(runs) // 2]


def timed_run(directory: Path, home: Path) -> dict[str, Any]:
    """One run as a person starts it: wall time of the whole command and the largest sum of resident memory."""
    command = [sys.executable, "-m", "flashslm", "run", "--config", str(ROOT / RECIPE), "--home", str(home), "--json"]
    started = time.monotonic()
    peak_bytes = 0
    with subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            peak_bytes = max(peak_bytes, resident_bytes(process.pid, home))
            time.sleep(0.5)
        assert process.stdout is not None
        result = json.loads(process.stdout.read().splitlines()[-1])
    wall_s = time.monotonic() - started
    kept = ("state", "decision", "duration_s", "steps", "cached_steps", "test/perplexity", "test/loss_nats")
    kept += ("unigram_entropy_nats", "test/bits_per_byte", "latency_ms", "parameters", "operators")
    return {"wall_s": round(wall_s, 1), "peak_resident_bytes": peak_bytes} | {key: result[key] for key in kept}


def resident_bytes(pid: int, home: Path) -> int:
    """Resident memory of the run's processes and of its stack, shared pages counted once each process."""
    total = 0
    for process in psutil.process_iter(["pid", "ppid", "memory_info", "cmdline"]):
        try:
            mine = process.info["pid"] == pid or any(parent.pid == pid for parent in process.parents())
            in_stack = any(str(home) in part for part in process.info["cmdline"] or [])
        except psutil.NoSuchProcess:
            continue
        if (mine or in_stack) and process.info["memory_info"] and process.info["pid"] != os.getpid():
            total += process.info["memory_info"].rss
    return total


if __name__ == "__main__":
    main()

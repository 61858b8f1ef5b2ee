"""Measure training on this machine: each preset with weight normalisation and without, beside a peer of its shape.

    .venv/bin/python benchmarks/training.py [--presets nemotron-flash-1b ...] [--steps 30] [--sequence-length 4096]
                                            [--batch 8] [--width W] [--graph] [--checkpoint] [--deterministic]
                                            [--processes N ...] [--shard-processes S ...] [--gather-dtype D ...]
                                            [--output FILE] [--max-minutes M] [--max-minutes-each M]

Every preset (or a model's architecture.json) runs twice, each time in a process of its own: the second one's first
step is what a process takes that finds compiled kernels. More on demand, in this order:

    --processes N     as many under torchrun: tokens/s of each against one alone, and the losses of the first steps
                      against those of one process with N micro-batches; several numbers are measured in turn, each
                      with every S of --shard-processes (S hold a copy together; 0: all, 1: each its own) and every D
                      of --gather-dtype (of the weights that they send each other; where S is 1 of the first alone)
    --graph           whole steps as a CUDA graph too, in the timed run, so that they stand beside the same peer
    --checkpoint      how much steps slow down while a checkpoint is written (by that second process)
    --deterministic   the same steps under deterministic algorithms
    --width W         the first step of a process at a hidden size that the ones before did not have

Writes benchmarks/results/training_<device>_<date>.json again after each part, so that a run that is cut short leaves
what it has. The last line of stdout is that record. A measurement that fails, or takes longer than it may, is listed in
it under `failed` with the end of what it said, and the exit code is 1.
"""

import argparse
import itertools
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashslm.benchmarking.options import (
    COUNT,
    COUNT_OR_NONE,
    MINUTES,
    OUTPUT,
    NumberType,
    OptionType,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import Provenance, record_facts, result_name, write_record
from flashslm.benchmarking.training_steps import TrainingCase
from flashslm.cli.describe import read_architecture
from flashslm.hardware import pick_device
from flashslm.infra.state_files import require_writable
from flashslm.launch.processes import stop_tree
from flashslm.models.presets import PRESETS, at_width

RESULTS = Path(__file__).parent / "results"
# Preset -> the library that has its shape.
PEERS = {"nemotron-flash-1b": "", "qwen3-0.6b": "transformers", "deltanet-1b": "fla"}
WARM_STEPS = 1  # of a process whose first step is what counts
TIMED_OUT = 124  # as of coreutils' timeout
SEVERAL = NumberType(2)  # processes that train together
MODEL = OptionType(lambda text: read_architecture(text) and text)
TORCHRUN = ("-m", "flashslm.training.workers", "--standalone", "--local-addr=127.0.0.1")  # as the trainer starts it
LINES_SAID = 20  # of a failed measurement's stderr
Result = dict[str, Any]


class Session:
    """Runs presets and keeps their record in a file."""

    def __init__(self, given: argparse.Namespace, output: Path) -> None:
        self.given, self.output, self.started = given, output, time.monotonic()
        facts = record_facts(pick_device("auto"))
        self.record: Result = {"subject": "training", **facts, "training": [], "failed": []}

    def measure(self, preset: str) -> None:
        """The preset's timed run, then what is asked for besides, part by part."""
        peer = ["--peer", PEERS[preset]] if PEERS.get(preset) else []
        graph = ["--graph"] if self.given.graph else []
        if first := self._bench(preset, self.given.steps, peer + graph):
            row = {key: value for key, value in first.items() if key not in Provenance.model_fields}
            self.record["training"].append(row)
            self._write()
            for part in self._parts(preset, first):
                row |= part
                self._write()
        self._write()

    def _write(self) -> None:
        write_record(self.output, self.record)

    def _parts(self, preset: str, alone: Result) -> Iterator[Result]:
        several: list[Result] = []
        for number in self.given.processes:
            for found in self._several(preset, alone, number):
                several = [*(row for row in several if row["processes"] != number), *found]
                yield {"several_processes": several}
        checkpoint = ["--checkpoint"] if self.given.checkpoint else []
        if other := self._bench(preset, self.given.steps if checkpoint else WARM_STEPS, checkpoint):
            written = {"checkpoint": other["checkpoint"]} if checkpoint else {}
            yield {"first_step_of_a_second_process_s": other["first_step_s"], **written}
        if self.given.deterministic and (other := self._bench(preset, self.given.steps, ["--deterministic"])):
            yield {"deterministic": {key: other[key] for key in ("weight_norm_off", "weight_norm_on")}}
        if self.given.width and (other := self._bench(preset, WARM_STEPS, ["--width", str(self.given.width)])):
            yield {"first_step_of_another_width_s": {self.given.width: other["first_step_s"]}}

    def _several(self, preset: str, alone: Result, number: int) -> Iterator[list[Result]]:
        """Speeds of so many processes, a row for each way to share the model; then with losses beside those of one."""
        rows: list[Result] = []
        for shard_processes, gather_dtype in self._ways():
            options = ["--shard-processes", str(shard_processes), "--gather-dtype", gather_dtype]
            if together := self._bench(preset, self.given.steps, options, number):
                rows.append(_beside(together, alone))
                yield rows
        if rows and (same_data := self._bench(preset, WARM_STEPS, ["--micro-batches", str(number)])):
            yield [row | _losses_beside(row, same_data) for row in rows]

    def _ways(self) -> list[tuple[int, str]]:
        """Each once: where each process has its own copy no weights are sent, and the first dtype is enough."""
        dtypes = self.given.gather_dtype
        pairs = itertools.product(self.given.shard_processes, dtypes)
        return list(dict.fromkeys((shard, dtypes[0] if shard == 1 else dtype) for shard, dtype in pairs))

    def _bench(self, preset: str, steps: int, options: list[str], processes: int = 1) -> Result | None:
        what = "preset" if preset in PRESETS else "model"
        sizes = {what: preset, "sequence-length": self.given.sequence_length, "batch": self.given.batch, "steps": steps}
        arguments = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
        torchrun = [*TORCHRUN, f"--nproc-per-node={processes}"]
        start = [sys.executable, *(torchrun if processes > 1 else []), "-m", "flashslm"]
        command = [*start, "bench", "training", *arguments, *options]
        code, lines, said = run(command, self._seconds_left())
        print(f"{time.monotonic() - self.started:6.1f} s  {' '.join(command[1:])}", file=sys.stderr, flush=True)
        found = [line for line in lines if line.startswith("{")]  # libraries print there too
        if code or not found:
            failed = {"what": preset, "command": " ".join(command[1:]), "code": code, "stderr": said[-LINES_SAID:]}
            self.record["failed"].append(failed)
            print("\n".join(f"  | {line}" for line in failed["stderr"]), file=sys.stderr, flush=True)
            return None
        result: Result = json.loads(found[-1])
        return result

    def _seconds_left(self) -> float:
        left_s = 60 * self.given.max_minutes - (time.monotonic() - self.started)
        return min(60 * self.given.max_minutes_each, left_s)


def _beside(together: Result, alone: Result) -> Result:
    """The row of several processes: speeds and parts of a step of each of them."""
    variants = {name: together[name] for name in ("weight_norm_off", "weight_norm_on")}
    speeds = {name: speed["tokens_per_s"] for name, speed in variants.items()}
    same = ("processes", "shard_processes", "gather_dtype", "first_losses_nats", "peak_memory_bytes")
    return {
        **{name: together[name] for name in same},
        "tokens_per_s_of_each": speeds,
        "of_one_alone": {name: speed / alone[name]["tokens_per_s"] for name, speed in speeds.items()},
        "parts_ms": {name: speed["parts_ms"] for name, speed in variants.items()},
    }


def _losses_beside(row: Result, alone: Result) -> Result:
    """The first losses of one process on the same data, and how far those of several are from them."""
    losses = row["first_losses_nats"], alone["first_losses_nats"]
    difference = max(abs(a - b) for a, b in zip(*losses, strict=True))
    return {"first_losses_of_one_nats": losses[1], "largest_difference_nats": difference}


def require_usable(given: argparse.Namespace) -> None:
    """ValueError for sizes that do not fit a model, and for numbers that do not go together."""
    for preset in given.presets:
        architecture = read_architecture(preset)
        TrainingCase(preset, architecture, given.sequence_length, given.batch, given.steps, "cpu", "float32")
        if given.width:
            at_width(architecture, given.width)
    if not given.processes and (given.shard_processes != [0] or given.gather_dtype != ["float32"]):
        raise ValueError("--shard-processes and --gather-dtype are of several processes: give --processes too")
    for number, group in itertools.product(given.processes, given.shard_processes):
        if group and number % group:
            raise ValueError(f"--shard-processes {group} with --processes {number}: give a divisor, or 0 for all")


def run(command: list[str], limit_s: float) -> tuple[int, list[str], list[str]]:
    """Exit code and the lines of stdout and stderr; after `limit_s` the command and all below it are ended."""
    if limit_s <= 0:
        return TIMED_OUT, [], ["no time was left for it"]
    with tempfile.TemporaryFile("w+") as output, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors)
        try:
            code = process.wait(None if limit_s == math.inf else limit_s)
        except subprocess.TimeoutExpired:
            code = TIMED_OUT
        finally:
            if process.poll() is None:
                stop_tree(process.pid)
                process.wait()
        output.seek(0)
        errors.seek(0)
        ended = [f"ended after {limit_s:.0f} s"] if code == TIMED_OUT else []
        return code, output.read().splitlines(), errors.read().splitlines() + ended


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--presets", nargs="+", type=MODEL, default=list(PEERS))
    parser.add_argument("--steps", type=COUNT, default=30)
    parser.add_argument("--sequence-length", type=COUNT, default=4096)
    parser.add_argument("--batch", type=COUNT, default=8)
    parser.add_argument("--width", type=COUNT_OR_NONE, default=0)
    parser.add_argument("--graph", action="store_true")
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--deterministic", action="store_true")
    parser.add_argument("--processes", type=SEVERAL, nargs="+", default=[])
    parser.add_argument("--shard-processes", type=COUNT_OR_NONE, nargs="+", default=[0])
    parser.add_argument("--gather-dtype", choices=["float32", "bfloat16"], nargs="+", default=["float32"])
    parser.add_argument("--max-minutes", type=MINUTES, default=math.inf, help="of all measurements together")
    parser.add_argument("--max-minutes-each", type=MINUTES, default=math.inf, help="of each measurement")
    parser.add_argument("--output", type=OUTPUT)
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    output = given.output or RESULTS / f"{result_name('training', pick_device('auto'))}.json"
    with before_work(parser):
        require_writable(output)
        require_usable(given)
    session = Session(given, output)
    for preset in given.presets:
        session.measure(preset)
    print(json.dumps(session.record))
    return 1 if session.record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

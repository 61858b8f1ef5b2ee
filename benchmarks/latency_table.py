"""Measure the latency table on this machine, check it against whole models, and sweep depth against width.

    .venv/bin/python benchmarks/latency_table.py [--parts table calibration check sweep] [--budget-s 540]
        [--weights int8]

Sizes are Nemotron-Flash's. Writes benchmarks/results/latency_table_<device>_<date>.json (latency_table-int8_… with
weights of 8 bits) again after every stage. No
stage begins that would not end within the budget if it took as long as the longest before it; those are listed in
`left_out`. `--table RECORD` continues with an earlier record's table: `--parts calibration check sweep`. The last line
of stdout is the record's summary.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from flashslm.benchmarking.options import (
    COUNT,
    COUNT_OR_NONE,
    INPUT,
    OPERATORS,
    OUTPUT,
    POSITIVE,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import read_record, record_facts, result_name, write_record
from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.hardware import device_fingerprint, pick_device
from flashslm.infra.state_files import require_writable
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS
from flashslm.ops import kernels
from flashslm.profiling.additivity import AdditivityCheck, check_additivity
from flashslm.profiling.calibration import calibrate
from flashslm.profiling.compilation import compile_ahead
from flashslm.profiling.depth_width import DepthWidthSweep, measure_depth_width
from flashslm.profiling.latency_table import LatencyTable
from flashslm.profiling.measure import measure_latency_table
from flashslm.profiling.plan import ProfilingPlan

RESULTS = Path(__file__).parent / "results"
PARTS = ("table", "calibration", "check", "sweep")
SIZES = ModelConfig(head_dim=128, kv_group=4, ffn_ratio=3, mamba_state=128, mamba_head_dim=64, num_meta_tokens=256)
VOCAB_SIZE = 131_072
MERGED = ("entries", "left_out")
Stage = tuple[str, Callable[[], None]]


@dataclass(frozen=True)
class Plan(ProfilingPlan):
    """What is measured, at Nemotron-Flash's sizes. The sweep has contexts of its own."""

    sizes: ModelConfig = SIZES
    vocab_size: int = VOCAB_SIZE
    sweep_contexts: tuple[int, ...] = ()


class Session:
    """Runs a plan in stages and keeps its record in a file."""

    def __init__(self, plan: Plan, output: Path, budget_s: float, table: LatencyTable | None = None) -> None:
        self.plan, self.output, self.budget_s, self.table = plan, output, budget_s, table
        self.started, self.longest_s = time.monotonic(), 0.0
        self.check: AdditivityCheck | None = None
        self.sweep: DepthWidthSweep | None = None
        device = pick_device(plan.profiling.device)
        self.record: dict[str, Any] = {
            "subject": "latency_table",
            **record_facts(device),
            "repeats": plan.profiling.repeats,
            "profiling": plan.profiling.model_dump(),
            "budget_s": budget_s,
            "durations_s": {},
            "left_out": [],
        }

    def run(self, parts: tuple[str, ...]) -> dict[str, Any]:
        for part in PARTS:
            for name, act in getattr(self, f"stages_of_{part}")() if part in parts else ():
                self.attempt(name, act)
        return self.record

    def attempt(self, name: str, act: Callable[[], None]) -> None:
        """A stage, if it is likely to end in time."""
        begun_s = self.elapsed_s
        if begun_s + self.longest_s > self.budget_s:
            self.record["left_out"].append(f"{name}: {begun_s:.0f} s of {self.budget_s:.0f} s were over")
        else:
            act()
            took_s = self.elapsed_s - begun_s
            self.longest_s = max(self.longest_s, took_s)
            self.record["durations_s"][name] = round(took_s, 1)
            print(f"{self.elapsed_s:6.1f} s  {name}", file=sys.stderr, flush=True)
        self.save()

    def save(self) -> None:
        for name in ("table", "check", "sweep"):
            value = getattr(self, name)
            self.record[name] = value.model_dump(mode="json") if value else None
        self.record |= {"kernels": kernels.decisions(), "summary": self.summary()}
        write_record(self.output, self.record)

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"left_out": self.record["left_out"], "durations_s": self.record["durations_s"]}
        if self.table:
            found |= {"entries": len(self.table.entries), "entries_left_out": len(self.table.left_out)}
            found["overheads"] = [overhead.model_dump() for overhead in self.table.overheads]
        if self.check:
            found |= {"models": len(self.check.models)} | self.check.model_dump(exclude={"models"})
        if self.sweep:
            found["sweep_points"] = len(self.sweep.points)
        return found

    def stages_of_table(self) -> Iterator[Stage]:
        yield "compilation", partial(compile_ahead, self.plan)
        for batch in self.plan.profiling.batches:
            yield f"table, batch {batch}", partial(self.extend_table, self.plan.changed(batches=(batch,)))

    def stages_of_calibration(self) -> Iterator[Stage]:
        if self.table:
            yield "calibration", self.calibrate

    def stages_of_check(self) -> Iterator[Stage]:
        if self.table:
            yield "check", self.check_table

    def stages_of_sweep(self) -> Iterator[Stage]:
        for budget in self.plan.profiling.sweep_parameters:
            part = self.plan.changed(sweep_parameters=(budget,), contexts=self.plan.sweep_contexts)
            yield f"sweep, {budget:,} parameters", partial(self.extend_sweep, part)

    def extend_table(self, part: ProfilingPlan) -> None:
        fresh = measure_latency_table(part)
        if self.table:
            merged = {name: getattr(self.table, name) + getattr(fresh, name) for name in MERGED}
            fresh = LatencyTable.model_validate(fresh.model_dump() | merged)
        self.table = fresh

    def calibrate(self) -> None:
        assert self.table is not None
        self.table = calibrate(self.table, self.plan)

    def check_table(self) -> None:
        assert self.table is not None
        self.check = check_additivity(self.table, self.plan)

    def extend_sweep(self, part: ProfilingPlan) -> None:
        fresh = measure_depth_width(part)
        if self.sweep:
            merged = {name: getattr(self.sweep, name) + getattr(fresh, name) for name in ("points", "skipped")}
            fresh = self.sweep.model_copy(update=merged)
        self.sweep = fresh

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started


def read_table(record: Path, plan: Plan) -> LatencyTable:
    """The table of an earlier record; ValueError if it was measured elsewhere or with other weights."""
    table = LatencyTable.model_validate(read_record(record, "table")["table"])
    here = device_fingerprint(pick_device(plan.profiling.device))
    if table.device != here:
        raise ValueError(f"the table of '{record}' was measured on {table.device}, this is {here}: measure it again")
    return table.require_weights(plan.profiling.weights)


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--budget-s", type=POSITIVE, default=540.0)
    parser.add_argument("--output", type=OUTPUT)
    parser.add_argument("--table", type=INPUT, metavar="RECORD")
    parser.add_argument("--compile-processes", type=COUNT, default=8)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--weights", choices=("full", "int8"), default="full")
    parser.add_argument("--operators", type=OPERATORS, default=EXPORTABLE_OPERATORS)
    parser.add_argument("--widths", nargs="+", type=COUNT, default=list(range(1024, 3073, 256)))
    parser.add_argument("--contexts", nargs="+", type=COUNT, default=[1024, 2048, 4096, 8192, 16_384, 32_768])
    parser.add_argument("--batches", nargs="+", type=COUNT, default=[1, 8, 32, 128, 256])
    parser.add_argument("--repeats", type=COUNT, default=20)
    parser.add_argument("--calibration-models", type=COUNT_OR_NONE, default=0, help="for each batch")
    parser.add_argument("--check-models", type=COUNT_OR_NONE, default=32, help="random ones, beside the known designs")
    parser.add_argument("--sweep-block", type=OPERATORS, default="AF", help="the paper's: attention and FFN")
    parser.add_argument("--sweep-depths", nargs="+", type=COUNT, default=[6, 12, 18, 24, 30])
    parser.add_argument("--sweep-parameters", nargs="+", type=COUNT, default=[300_000_000, 500_000_000, 1_000_000_000])
    parser.add_argument("--sweep-contexts", nargs="+", type=COUNT, default=[1024, 8192])
    return parser


def make_plan(given: argparse.Namespace) -> Plan:
    fields = {name: value for name, value in vars(given).items() if name in ProfilingConfig.model_fields}
    return Plan(ProfilingConfig.model_validate(fields), sweep_contexts=tuple(given.sweep_contexts))


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    with before_work(parser):
        plan = make_plan(given)
        subject = "latency_table" if given.weights == "full" else f"latency_table-{given.weights}"
        output = given.output or RESULTS / f"{result_name(subject, pick_device(given.device))}.json"
        table = read_table(given.table, plan) if given.table else None
        if not table and "table" not in given.parts and {"calibration", "check"} & set(given.parts):
            raise ValueError("--parts calibration and check need a table: add the part table, or --table RECORD")
        session = Session(plan, require_writable(output), given.budget_s, table)
    print(json.dumps(session.run(tuple(given.parts))["summary"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())

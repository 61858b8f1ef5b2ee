"""Measure decoding on this machine: latency beside a peer, growing batches, throughput at 32k tokens.

    .venv/bin/python benchmarks/decode.py [--quick] [--parts latency throughput batches] [--peer vllm|none]
                                          [--weights int8] [--kernels decode=torch]

Writes benchmarks/results/decode_<device>_<date>.json again after every measurement, so that a run that is cut short
leaves what it has. The last line of stdout is that record. A measurement that fails is listed in it under `failed`, and
the exit code is 1. `--quick` takes one context, one peer, fewer steps and no batches; prefill then runs in plain torch,
whose forms need no autotuning, so its TTFT is not the engine's best.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashslm.benchmarking.case import Case
from flashslm.benchmarking.decode import DecodeResult, compare, measure_decode
from flashslm.benchmarking.peer import DECODERS, Peer, find_peer, measure_peer
from flashslm.benchmarking.record import Provenance, record_facts, result_name, write_record
from flashslm.benchmarking.result import BenchmarkResult
from flashslm.benchmarking.throughput import bench_throughput, steps_ending_at
from flashslm.config import KernelsConfig
from flashslm.hardware import pick_device, pick_dtype
from flashslm.models.presets import PRESETS
from flashslm.ops.kernels import read_setting

RESULTS = Path(__file__).parent / "results"
PARTS = ("latency", "throughput", "batches")
LATENCY_PRESETS = ("nemotron-flash-1b", "nemotron-flash-3b", "qwen3-0.6b", "qwen3-1.7b")
QUICK_PRESETS = LATENCY_PRESETS[:3]  # they share a peer, which takes the longest to compile
CONTEXTS = (1024, 8192)
RIVALS = ("nemotron-flash-1b", "qwen3-0.6b")  # the record has the first one's throughput over the second's
LONG_CONTEXT = 32_768
BATCHES = (1, 2, 4, 8, 16, 32, 64)
BATCHES_CONTEXT = 8192
QUICK_KERNELS = {"delta_rule": "chunked", "ssd": "chunked"}


@dataclass(frozen=True)
class Plan:
    """What is measured: latency beside the peer, throughput of the largest batch that fits and of given ones."""

    setting: KernelsConfig
    latency: tuple[Case, ...]
    throughput: tuple[Case, ...]
    batches: tuple[Case, ...]


def make_plan(quick: bool, setting: KernelsConfig) -> Plan:
    steps, repeats = (128, 2) if quick else (256, 3)
    long_steps, long_repeats = (16, 1) if quick else (64, 3)
    if quick:
        setting = KernelsConfig.model_validate(QUICK_KERNELS | setting.model_dump(exclude_defaults=True))
    device = pick_device("auto")
    dtype = pick_dtype("auto", device)

    def latency(name: str, context: int) -> Case:
        return Case(name, PRESETS[name], context, steps, 1, device, dtype, repeats)

    def throughput(name: str, context: int, batch: int) -> Case:
        start = steps_ending_at(context, long_steps)
        return Case(name, PRESETS[name], start, long_steps, batch, device, dtype, long_repeats)

    presets, contexts = (QUICK_PRESETS, CONTEXTS[-1:]) if quick else (LATENCY_PRESETS, CONTEXTS)
    return Plan(
        setting,
        latency=tuple(latency(name, context) for name in presets for context in contexts),
        throughput=tuple(throughput(name, LONG_CONTEXT, 1) for name in RIVALS),
        batches=() if quick else tuple(throughput(n, BATCHES_CONTEXT, b) for n in RIVALS for b in BATCHES),
    )


class Session:
    """Runs a plan and keeps its record in a file."""

    def __init__(self, plan: Plan, output: Path, peer: str = "hf") -> None:
        self.plan, self.output, self.peer, self.started = plan, output, peer, time.monotonic()
        self.latency: dict[Case, DecodeResult] = {}
        facts = record_facts(plan.latency[0].device)
        self.record: dict[str, Any] = {"subject": "decode", **facts, "repeats": plan.latency[0].repeats}
        self.record |= {"latency": [], "throughput": [], "batches": [], "throughput_ratio": None, "failed": []}

    def run(self, parts: tuple[str, ...]) -> dict[str, Any]:
        if "latency" in parts:
            for case in self.plan.latency:
                self.attempt(f"latency of {case.preset} at {case.context}", self.measure_latency, case)
        for part in ("throughput", "batches"):
            for case in getattr(self.plan, part) if part in parts else ():
                what = "the largest batch" if part == "throughput" else f"batch {case.batch}"
                self.attempt(f"throughput of {case.preset}, {what}", self.measure_throughput, case, part)
        if "latency" in parts:
            for peer in dict.fromkeys(find_peer(self.peer, case) for case in self.latency if self.peer):
                self.attempt(f"peer {peer.case.preset} at {peer.case.context}", self.measure_peer, peer)
        return self.record

    def attempt(self, what: str, measure: Callable[..., None], *arguments: Any) -> None:
        """One measurement; whatever goes wrong in it is recorded and does not cost the others."""
        try:
            measure(*arguments)
        except Exception as error:
            traceback.print_exc()
            self.record["failed"].append({"what": what, "error": f"{type(error).__name__}: {error}"})
        print(f"{time.monotonic() - self.started:6.1f} s  {what}", file=sys.stderr, flush=True)
        write_record(self.output, self.record)

    def measure_latency(self, case: Case) -> None:
        self.latency[case] = measure_decode(case, self.plan.setting)
        self.record["latency"] = [own_fields(result) for result in self.latency.values()]

    def measure_throughput(self, case: Case, part: str) -> None:
        result = bench_throughput(case, self.plan.setting, largest=part == "throughput")
        self.record[part].append(own_fields(result))
        if part == "throughput" and len(rates := [r["tokens_per_s"] for r in self.record[part]]) == len(RIVALS):
            self.record["throughput_ratio"] = rates[0] / rates[1]

    def measure_peer(self, peer: Peer) -> None:
        """Put the peer beside every case that it is the peer of."""
        found = measure_peer(peer)
        for case, result in self.latency.items():
            if find_peer(self.peer, case) == peer:
                self.latency[case] = compare(result, found)
        self.record["latency"] = [own_fields(result) for result in self.latency.values()]


def own_fields(result: BenchmarkResult) -> dict[str, Any]:
    """What is not the same for the whole record."""
    return result.model_dump(mode="json", exclude=set(Provenance.model_fields))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kernels", action="append", metavar="OPERATION=FORM")
    parser.add_argument("--peer", choices=(*DECODERS, "none"), default="hf")
    parser.add_argument("--weights", choices=("full", "int8"), default="full")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    plan = make_plan(given.quick, read_setting(given.kernels))
    plan = replace(plan, latency=tuple(replace(case, weights=given.weights) for case in plan.latency))
    subject = "decode" if given.weights == "full" else f"decode-{given.weights}"
    output = given.output or RESULTS / f"{result_name(subject, plan.latency[0].device)}.json"
    record = Session(plan, output, given.peer if given.peer != "none" else "").run(tuple(given.parts))
    print(json.dumps(record))
    return 1 if record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

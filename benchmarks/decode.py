"""Measure decoding on this machine: latency beside peers, growing batches, throughput at 32k tokens.

    .venv/bin/python benchmarks/decode.py [--quick] [--parts latency throughput batches] [--weights int8]
                                          [--peers hf vllm vllm-plugin] [--kernels decode=torch]

Writes benchmarks/results/decode_<device>_<date>.json again after every measurement, so that a run that is cut short
leaves what it has. The last line of stdout is that record. A measurement that fails is listed in it under `failed`, and
the exit code is 1. `--peers` are those of `flashslm bench decode --peer`, none after a bare `--peers`; those in vLLM
are measured beside larger batches too. `--quick` takes one context, fewer steps and no batches; prefill then runs in
plain torch, whose forms need no autotuning, so its TTFT is not the engine's best.
"""

import argparse
import json
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flashslm.benchmarking.case import Case
from flashslm.benchmarking.decode import DecodeResult, measure_decode
from flashslm.benchmarking.options import KERNEL, OUTPUT, before_work, script_parser
from flashslm.benchmarking.peer import DECODERS, OWN_MODEL, Peer, PeerResult, find_peer, measure_apart, share_a_decoder
from flashslm.benchmarking.qwen3_shape import is_qwen3
from flashslm.benchmarking.record import Provenance, record_facts, result_name, write_record
from flashslm.benchmarking.throughput import ThroughputResult, bench_throughput, steps_ending_at
from flashslm.config import KernelsConfig
from flashslm.hardware import pick_device, pick_dtype
from flashslm.infra.state_files import require_writable
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
PEER_BATCHES_FROM = 8  # smaller ones say little that one sequence does not
PeerOf = Callable[[str, Case], Peer | None]
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
    """Runs a plan and keeps its record in a file. Peers come last, when our models have been freed."""

    def __init__(self, plan: Plan, output: Path, peers: tuple[str, ...] = ("hf",)) -> None:
        self.plan, self.output, self.peers, self.started = plan, output, peers, time.monotonic()
        self.latency: dict[Case, DecodeResult] = {}
        self.throughput: dict[Case, ThroughputResult] = {}
        self.batches: dict[Case, ThroughputResult] = {}
        self.found: dict[Peer | None, PeerResult] = {}
        self.failed: list[dict[str, str]] = []
        self.facts = {"subject": "decode", **record_facts(plan.latency[0].device), "repeats": plan.latency[0].repeats}

    def run(self, parts: tuple[str, ...]) -> dict[str, Any]:
        if "latency" in parts:
            for case in self.plan.latency:
                self.attempt(f"latency of {case.preset} at {case.context}", self.measure_latency, case)
        for part in ("throughput", "batches"):
            for case in getattr(self.plan, part) if part in parts else ():
                what = "the largest batch" if part == "throughput" else f"batch {case.batch}"
                self.attempt(f"throughput of {case.preset}, {what}", self.measure_throughput, case, part)
        for group in share_a_decoder(list(dict.fromkeys(self.all_peers()))):
            sizes = ", ".join(f"{peer.case.batch} x {peer.case.context}" for peer in group)
            self.attempt(f"peer {group[0].name} of {group[0].case.preset}, {sizes}", self.measure_peers, group)
        return self.record()

    def attempt(self, what: str, measure: Callable[..., None], *arguments: Any) -> None:
        """One measurement; whatever goes wrong in it is recorded and does not cost the others."""
        try:
            measure(*arguments)
        except Exception as error:
            traceback.print_exc()
            self.failed.append({"what": what, "error": f"{type(error).__name__}: {error}"})
        print(f"{time.monotonic() - self.started:6.1f} s  {what}", file=sys.stderr, flush=True)
        write_record(self.output, self.record())

    def measure_latency(self, case: Case) -> None:
        self.latency[case] = measure_decode(case, self.plan.setting)

    def measure_throughput(self, case: Case, part: str) -> None:
        getattr(self, part)[case] = bench_throughput(case, self.plan.setting, largest=part == "throughput")

    def measure_peers(self, group: list[Peer]) -> None:
        found, error = measure_apart(group)
        self.found |= zip(group, found, strict=False)  # after an error they are fewer
        if error:
            raise error

    def all_peers(self) -> Iterator[Peer]:
        for name in self.peers:
            yield from filter(None, (latency_peer(name, case) for case in self.latency))
            yield from filter(None, (batch_peer(name, case) for case in self.batches))

    def record(self) -> dict[str, Any]:
        rates = [result.tokens_per_s for result in self.throughput.values()]
        return self.facts | {
            "latency": [self.row(latency_peer, case, result) for case, result in self.latency.items()],
            "throughput": [own_fields(result) for result in self.throughput.values()],
            "batches": [self.row(batch_peer, case, result) for case, result in self.batches.items()],
            "throughput_ratio": rates[0] / rates[1] if len(rates) == len(RIVALS) else None,
            "failed": self.failed,
        }

    def row(self, peer_of: PeerOf, case: Case, result: DecodeResult | ThroughputResult) -> dict[str, Any]:
        """The result with its peers; a `ratio` is the peer's time over ours: above 1 ours is faster."""
        peers = []
        for name in self.peers:
            if found := self.found.get(peer_of(name, case)):
                peer = {"name": name, **found.model_dump(mode="json")}
                peer["ratio"] = found.tpot_ms_median / result.tpot_ms_median
                if isinstance(result, DecodeResult):
                    peer["ttft_ratio"] = found.ttft_ms / result.ttft_ms
                peers.append(peer)
        return own_fields(result) | {"peers": peers}


def latency_peer(name: str, case: Case) -> Peer | None:
    """What `name` measures beside one sequence: our model in vLLM only where it is a hybrid."""
    return None if name == OWN_MODEL and is_qwen3(case.architecture) else find_peer(name, case)


def batch_peer(name: str, case: Case) -> Peer | None:
    """What `name` measures beside a batch: the same model in vLLM."""
    same_model = "vllm" if is_qwen3(case.architecture) else OWN_MODEL
    return find_peer(name, case) if name == same_model and case.batch >= PEER_BATCHES_FROM else None


def own_fields(result: DecodeResult | ThroughputResult) -> dict[str, Any]:
    """What is not the same for the whole record."""
    return result.model_dump(mode="json", exclude={*Provenance.model_fields, "peer"})


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--kernels", action="append", type=KERNEL, metavar="OPERATION=FORM")
    parser.add_argument("--peers", nargs="*", choices=DECODERS, default=["hf"])
    parser.add_argument("--weights", choices=("full", "int8"), default="full")
    parser.add_argument("--output", type=OUTPUT)
    return parser


def main(arguments: list[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    plan = make_plan(given.quick, read_setting(given.kernels))
    plan = replace(plan, latency=tuple(replace(case, weights=given.weights) for case in plan.latency))
    subject = "decode" if given.weights == "full" else f"decode-{given.weights}"
    output = given.output or RESULTS / f"{result_name(subject, plan.latency[0].device)}.json"
    with before_work(parser):
        require_writable(output)
        if not any(getattr(plan, part) for part in given.parts):
            raise ValueError(f"--quick has no {', '.join(given.parts)}: leave it out, or give other --parts")
        for name in given.peers:  # whether it can be measured here
            find_peer(name, plan.latency[0])
    record = Session(plan, output, tuple(given.peers)).run(tuple(given.parts))
    print(json.dumps(record))
    return 1 if record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

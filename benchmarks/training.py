"""Measure training on this machine: each preset with weight normalisation and without, beside a peer of its shape.

    .venv/bin/python benchmarks/training.py [--presets nemotron-flash-1b ...] [--steps 30] [--sequence-length 4096]
                                            [--batch 8] [--output FILE]

Every preset runs twice, each time in a process of its own: the second one's first step is what a process takes that
finds compiled kernels. Writes benchmarks/results/training_<device>_<date>.json again after each run, so that a run
that is cut short leaves what it has. The last line of stdout is that record. A measurement that fails is listed in it
under `failed`, and the exit code is 1.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from flashslm.benchmarking.record import Provenance, provenance, result_name
from flashslm.hardware import pick_device

RESULTS = Path(__file__).parent / "results"
# Preset -> the library that has its shape.
PEERS = {"nemotron-flash-1b": "", "qwen3-0.6b": "transformers", "deltanet-1b": "fla"}
WARM_STEPS = 1  # of the second process: its first step is what counts


class Session:
    """Runs presets and keeps their record in a file."""

    def __init__(self, given: argparse.Namespace, output: Path) -> None:
        self.given, self.output, self.started = given, output, time.monotonic()
        facts = Provenance(**provenance(pick_device("auto"))).model_dump(mode="json")
        self.record: dict[str, Any] = {"subject": "training", **facts, "training": [], "failed": []}

    def measure(self, preset: str) -> None:
        """The preset's timed run, then one in a second process on the kernels that the first has left."""
        peer = ["--peer", PEERS[preset]] if PEERS.get(preset) else []
        first = self._bench(preset, self.given.steps, peer)
        second = self._bench(preset, WARM_STEPS, [])
        if first and second:
            own = {key: value for key, value in first.items() if key not in Provenance.model_fields}
            self.record["training"].append(own | {"first_step_of_a_second_process_s": second["first_step_s"]})
        self.output.parent.mkdir(parents=True, exist_ok=True)
        self.output.write_text(json.dumps(self.record, indent=1) + "\n", encoding="utf-8")

    def _bench(self, preset: str, steps: int, options: list[str]) -> dict[str, Any] | None:
        sizes = {"preset": preset, "sequence-length": self.given.sequence_length, "batch": self.given.batch}
        arguments = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
        command = [sys.executable, "-m", "flashslm", "bench", "training", *arguments, "--steps", str(steps), *options]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
        print(f"{time.monotonic() - self.started:6.1f} s  {preset}, {steps} steps", file=sys.stderr, flush=True)
        if done.returncode:
            self.record["failed"].append({"what": preset, "command": " ".join(command[2:]), "code": done.returncode})
            return None
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", default=list(PEERS))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--sequence-length", type=int, default=4096)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--output", type=Path)
    given = parser.parse_args(arguments)
    output = given.output or RESULTS / f"{result_name('training', pick_device('auto'))}.json"
    session = Session(given, output)
    for preset in given.presets:
        session.measure(preset)
    print(json.dumps(session.record))
    return 1 if session.record["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())

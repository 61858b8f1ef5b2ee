"""Run tests/gpu on this machine's GPU and record the outcome.

    python benchmarks/gpu_tests.py [--workers 8] [--output FILE] [TESTS ...]

Needs the extra `cuda`. Writes benchmarks/results/gpu-tests_<device>_<date>.json after every result, so that a run that
is cut short leaves what it has (its `exit_code` is null), and ends as pytest does. TESTS are files or directories.
tests/gpu/test_vllm_plugin.py, with vLLM and the plug-in installed, is a record of its own
(`--output gpu-tests-vllm_<device>_<date>.json`).
"""

import argparse
import os
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from flashslm.benchmarking.options import COUNT, OUTPUT, TEXT, before_work, require_gpu, script_parser
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.infra.state_files import require_writable

ROOT = Path(__file__).parents[1]


class Recorder:
    """A plug-in of pytest that keeps the outcomes by file in `output`, beside `facts`."""

    def __init__(self, output: Path, facts: dict[str, Any]) -> None:
        self.output, self.facts, self.started = output, facts, time.monotonic()
        self.collected = 0
        self.exit_code: int | None = None
        self.by_file: dict[str, Counter[str]] = {}

    def pytest_xdist_node_collection_finished(self, ids: list[str]) -> None:
        self.collected = len(ids)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" or not report.passed:
            found = "error" if report.failed and report.when != "call" else report.outcome
            self.by_file.setdefault(report.nodeid.partition("::")[0], Counter())[found] += 1
            self.write()

    def record(self) -> dict[str, Any]:
        return self.facts | {
            "exit_code": self.exit_code,
            "seconds": round(time.monotonic() - self.started, 1),
            "collected": self.collected,
            "total": dict(sum(self.by_file.values(), Counter())),
            "by_file": {name: dict(counts) for name, counts in sorted(self.by_file.items())},
        }

    def write(self) -> None:
        write_record(self.output, self.record())


def run_tests(workers: int, tests: list[str], recorder: Recorder) -> int:
    """pytest's exit code. Tests that share kernels share a worker."""
    os.chdir(ROOT)
    options = ["-q", "--tb=short", "-n", str(workers), "--dist", "loadgroup"]
    recorder.exit_code = int(pytest.main([*options, *tests], plugins=[recorder]))
    recorder.write()
    return recorder.exit_code


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--workers", type=COUNT, default=8)
    parser.add_argument("--output", type=OUTPUT)
    parser.add_argument("tests", nargs="*", type=TEXT, default=["tests/gpu"])
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    with before_work(parser):
        require_gpu()
        if absent := [test for test in given.tests if not (ROOT / test.partition("::")[0]).exists()]:
            raise ValueError(f"{', '.join(absent)}: not below {ROOT}; give files or directories such as tests/gpu")
        default = ROOT / "benchmarks" / "results" / f"{result_name('gpu-tests', 'cuda')}.json"
        output = require_writable(given.output or default)
    recorder = Recorder(output.absolute(), record_facts("cuda"))
    code = run_tests(given.workers, given.tests, recorder)
    print(f"{recorder.record()['total']} of {recorder.collected} -> {output}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

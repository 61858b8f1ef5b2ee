"""Run tests/gpu on this machine's GPU and record the outcome.

    python benchmarks/gpu_tests.py [--workers 8] [--output FILE] [TESTS ...]

Needs the extra `cuda`. Writes benchmarks/results/gpu-tests_<device>_<date>.json and ends as pytest does. TESTS are
files or directories. tests/gpu/test_vllm_plugin.py, with vLLM and the plug-in installed, is a record of its own
(`--output gpu-tests-vllm_<device>_<date>.json`).
"""

import argparse
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

from flashslm.benchmarking.record import record_facts, result_name, write_record

ROOT = Path(__file__).parents[1]


def run_tests(workers: int, tests: list[str]) -> tuple[int, ElementTree.Element]:
    """pytest's exit code and its report, one element a test. Tests that share kernels share a worker."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        options = ["-q", "--tb=short", "-n", str(workers), "--dist", "loadgroup", f"--junitxml={report}"]
        done = subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT)
        return done.returncode, ElementTree.parse(report).getroot()


def outcomes(report: ElementTree.Element) -> dict[str, Counter[str]]:
    """Passed, failed and skipped tests by file."""
    counts: dict[str, Counter[str]] = {}
    for case in report.iter("testcase"):
        found = next((tag for tag in ("failure", "error", "skipped") if case.find(tag) is not None), "passed")
        counts.setdefault(case.get("classname", ""), Counter())[found] += 1
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--output", type=Path)
    parser.add_argument("tests", nargs="*", default=["tests/gpu"])
    given = parser.parse_args()
    code, report = run_tests(given.workers, given.tests)
    by_file = outcomes(report)
    suite = report.find("testsuite")
    record = {
        **record_facts("cuda"),
        "exit_code": code,
        "seconds": float(suite.get("time", "0")) if suite is not None else None,
        "total": dict(sum(by_file.values(), Counter())),
        "by_file": {name: dict(counts) for name, counts in sorted(by_file.items())},
    }
    output = given.output or ROOT / "benchmarks" / "results" / f"{result_name('gpu-tests', 'cuda')}.json"
    write_record(output, record)
    print(f"{record['total']} -> {output}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

"""Run `make test-containers` and record what building the images took, their sizes and the tests' outcome.

    sudo .venv/bin/python benchmarks/images.py [--output FILE]

Writes benchmarks/results/images_<device>_<date>.json and ends as the tests do. Sizes are those of images on a base made
with debootstrap and with the CPU's torch; `disk_bytes` is what the file system gained while everything was there.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path

from flashslm.benchmarking.options import OUTPUT, before_work, script_parser
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.infra.state_files import require_writable

ROOT = Path(__file__).parents[1]


def run_tests() -> tuple[int, float, ElementTree.Element]:
    """make's exit code, its wall time in seconds and pytest's report."""
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        env = os.environ | {"PYTEST_ADDOPTS": f"--junitxml={report}"}
        started = time.monotonic()
        done = subprocess.run(["make", "test-containers"], cwd=ROOT, env=env, check=False)
        return done.returncode, time.monotonic() - started, ElementTree.parse(report).getroot()


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--output", type=OUTPUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    with before_work(parser):
        default = ROOT / "benchmarks" / "results" / f"{result_name('images', 'cpu')}.json"
        output = require_writable(given.output or default)
    facts = record_facts("cpu")
    code, seconds, report = run_tests()
    suite = next(report.iter("testsuite"))
    images = next(found for found in report.iter("property") if found.get("name") == "images")
    record = {
        **facts,
        "exit_code": code,
        "tests": {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")},
        "seconds": round(seconds, 1),
        "load_average_1_5_15_minutes": os.getloadavg(),
        "images": json.loads(images.get("value", "{}")),
    }
    write_record(output, record)
    print(f"{record['tests']} in {seconds:.0f} s -> {output}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())

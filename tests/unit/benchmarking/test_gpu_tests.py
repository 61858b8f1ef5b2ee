"""benchmarks/gpu_tests.py: what its record holds, also of a run that is cut off."""

import json
import subprocess
import sys
from pathlib import Path

TESTS = """
import pytest

def test_that_passes(): pass
def test_that_fails(): assert False
@pytest.mark.skip
def test_that_is_skipped(): pass
@pytest.fixture
def broken(): raise OSError
def test_without_its_fixture(broken): pass
"""
RUN = """
import os, sys
from pathlib import Path
from benchmarks.gpu_tests import Recorder, run_tests

output, test, ends = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
recorder = Recorder(output, {"commit": "0123456"})
if ends == "early":
    recorder.pytest_sessionfinish = lambda: os._exit(9)
raise SystemExit(run_tests(2, [test, "-p", "no:cacheprovider"], recorder))
"""


def record_of_a_run(directory: Path, ends: str) -> tuple[int, dict]:
    test, output = directory / "test_four.py", directory / "record.json"
    test.write_text(TESTS, encoding="utf-8")
    done = subprocess.run([sys.executable, "-c", RUN, str(output), str(test), ends], cwd=Path(__file__).parents[3])
    return done.returncode, json.loads(output.read_text(encoding="utf-8"))


def test_the_record(tmp_path):
    code, record = record_of_a_run(tmp_path, "at its end")
    outcomes = {"passed": 1, "failed": 1, "skipped": 1, "error": 1}
    assert code == record["exit_code"] == 1 and record["commit"] == "0123456"
    assert record["total"] == outcomes and record["collected"] == 4 and list(record["by_file"].values()) == [outcomes]


def test_a_run_that_is_cut_off_leaves_what_it_has(tmp_path):
    code, record = record_of_a_run(tmp_path, "early")
    assert code == 9 and record["exit_code"] is None
    assert sum(record["total"].values()) == 4

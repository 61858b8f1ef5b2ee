"""What makes a number a record: commit, versions, bandwidth use."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from flashslm.benchmarking import record


def test_mbu_is_bytes_over_time_over_bandwidth():
    found = record.memory_bandwidth_use(4.8e9, 2.0, "NVIDIA H200", copy_bytes_per_s=4e12)
    assert found.mbu == pytest.approx(0.5)
    assert found.mbu_measured == pytest.approx(0.6)
    assert (found.bytes_per_token, found.bandwidth_bytes_per_s) == (4.8e9, 4.8e12)


def test_no_mbu_for_an_unknown_device():
    found = record.memory_bandwidth_use(1e9, 1.0, "NVIDIA H200 MIG 1g.18gb", copy_bytes_per_s=1e12)
    assert found.mbu is None and found.bandwidth_bytes_per_s is None
    assert found.mbu_measured == pytest.approx(1.0)


def test_provenance_is_of_this_process(monkeypatch):
    monkeypatch.setenv("FLASHSLM_COMMIT", "abc")
    monkeypatch.setattr(sys, "argv", ["/somewhere/flashslm", "bench", "decode", "--preset", "a b"])
    facts = record.Provenance(**record.provenance("cpu"))
    assert facts.command == "flashslm bench decode --preset 'a b'"
    assert facts.device == facts.fingerprint.name and facts.fingerprint.kind == "cpu"
    assert facts.versions["torch"] == facts.fingerprint.torch and facts.versions["python"] == sys.version.split()[0]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", facts.date) and facts.commit == "abc"
    assert json.loads(facts.model_dump_json())["fingerprint"]["cores"] > 0


def test_the_command_of_a_script(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "benchmarks" / "decode.py"), "--quick"])
    assert record.command() == "python benchmarks/decode.py --quick"


def test_a_command_names_no_directory_of_the_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    inside, outside = tmp_path / "results" / "a.json", tmp_path.parent / "elsewhere" / "b.json"
    monkeypatch.setattr(sys, "argv", ["decode.py", "--output", str(inside), "--table", str(outside), "--ratio", "1/2"])
    assert record.command() == "python decode.py --output results/a.json --table b.json --ratio 1/2"


def test_commit_of_the_checkout(monkeypatch):
    monkeypatch.delenv("FLASHSLM_COMMIT", raising=False)
    git = shutil.which("git")
    head = [git, "rev-parse", "HEAD"] if git else []
    found = subprocess.run(head, cwd=Path(__file__).parent, capture_output=True, text=True) if git else None
    if found is None or found.returncode:
        pytest.skip("not a git checkout")
    assert record.commit().removesuffix("-dirty") == found.stdout.strip()


def test_no_commit_without_git(monkeypatch):
    monkeypatch.delenv("FLASHSLM_COMMIT", raising=False)
    monkeypatch.setenv("PATH", "")
    assert record.commit() is None


def test_a_result_s_name(monkeypatch):
    class Fingerprint:
        name = "AMD EPYC (2 cores)"

    monkeypatch.setattr(record, "device_fingerprint", lambda device: Fingerprint)
    assert re.fullmatch(r"decode_amd-epyc-2-cores_\d{4}-\d\d-\d\d", record.result_name("decode", "cpu"))


def test_a_record_is_written_into_a_directory_that_is_not_there_and_everyone_reads_it(tmp_path):
    file = tmp_path / "results" / "a.json"
    record.write_record(file, {"date": "2026-11-27", "steps": [1, 2]})
    assert json.loads(file.read_text(encoding="utf-8")) == {"date": "2026-11-27", "steps": [1, 2]}
    assert file.stat().st_mode & 0o777 == 0o644
    assert [path.name for path in file.parent.iterdir()] == ["a.json"]

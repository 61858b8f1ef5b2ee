"""benchmarks/proxy_pipeline.py with a stand-in for `flashslm run`: cut off, called again, summed up."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import proxy_pipeline
from flashslm.benchmarking.gpu_use import GpuSample
from flashslm.config.file import dump
from flashslm.launch.local.run_records import RunRecord
from tests.unit.experiments.test_pipeline_findings import CONFIG, report
from tests.unit.training import tiny
from tests.waiting import wait_until, whole_lines

# Writes what a run leaves behind; a step that another call has done comes from the cache.
RUN = """
import json, pathlib, signal, sys, time
number, seconds = sys.argv[1:]
run = pathlib.Path("runs") / number
run.mkdir(parents=True)
(run / "config.yaml").write_text("name: x")
done = pathlib.Path("done")
cached = done.exists()
def emit(**event):
    with (run / "events.jsonl").open("a") as log:
        log.write(json.dumps({"step": "prepare_data", "label": "prepare_data", "time_s": time.time()} | event) + "\\n")
def task(name):
    return {"task": name, "step": name, "label": name}
emit(**task("prepare_data"), event="task_start", log="x")
emit(**task("prepare_data"), event="task_end", state="SUCCESS", cached=cached, artifacts={})
done.touch()
emit(**task("pretrain"), event="task_start", log="x")
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
time.sleep(float(seconds))
emit(**task("pretrain"), event="task_end", state="SUCCESS", cached=False, artifacts={})
print(json.dumps({"state": "SUCCESS", "decision": "promote", "operators": "DF"}))
"""
FACTS = {"device": "NVIDIA H200", "commit": "aaaaaaa", "command": "first", "date": "2026-11-27"}


def call(record: dict[str, Any], directory: Path, number: int, seconds: float, limit_s: float) -> None:
    made = proxy_pipeline.one_call([sys.executable, "-c", RUN, str(number), str(seconds)], directory, limit_s)
    samples = [GpuSample(made["began_s"] + share * made["wall_s"], 100 * share, 9.0) for share in (0.5, 1.0)]
    proxy_pipeline.add_call(record, made, samples, directory)


LIMIT_S = 7.0


class CutOff(subprocess.Popen):
    """A process whose limit is over half a second after it has begun to pretrain, however long it took to start."""

    def communicate(self, input: str | None = None, timeout: float | None = None) -> tuple[str, str]:
        if timeout != LIMIT_S:
            return super().communicate(input, timeout)
        events = Path("runs/1/events.jsonl")
        wait_until(lambda: any('"task": "pretrain"' in line for line in whole_lines(events)))
        time.sleep(0.6)
        raise subprocess.TimeoutExpired(self.args, LIMIT_S)


def test_a_run_that_was_cut_off_goes_on_in_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "record.json"
    record = proxy_pipeline.begin(output, FACTS)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(proxy_pipeline.subprocess, "Popen", CutOff)
        call(record, tmp_path, 1, seconds=600, limit_s=LIMIT_S)
    assert [(s["step"], s["state"], s["cached"]) for s in record["calls"][0]["steps"]] == [
        ("prepare_data", "SUCCESS", False),
        ("pretrain", "KILLED", False),
    ]
    assert record["calls"][0]["steps"][1]["duration_s"] > 0.5 and record["result"] == {}
    output.write_text(json.dumps(record))

    again = proxy_pipeline.begin(output, FACTS | {"commit": "bbbbbbb", "date": "2026-11-28"})
    assert again["commit"] == "aaaaaaa; bbbbbbb" and again["command"] == "first"
    call(again, tmp_path, 2, seconds=0, limit_s=300)
    assert [c["ended"] for c in again["calls"]] == ["cut off", "by itself"]
    assert [s["cached"] for s in again["calls"][1]["steps"]] == [True, False]
    assert again["result"] == {"state": "SUCCESS", "decision": "promote", "operators": "DF"}, "what won"
    assert again["gpu_busy_share"] == pytest.approx(0.75) and len(again["samples"]) == 4
    assert again["wall_s"] == pytest.approx(sum(c["wall_s"] for c in again["calls"]), abs=0.1)
    output.write_text(json.dumps(again))
    with pytest.raises(ValueError, match="a run that has ended: give another --output"):
        proxy_pipeline.begin(output, FACTS)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_its_group_cuts_the_run_off_in_an_orderly_way(tmp_path: Path, number: int) -> None:
    code = "import json, pathlib, sys; from benchmarks.proxy_pipeline import one_call; "
    code += "print(json.dumps(one_call(json.loads(sys.argv[1]), pathlib.Path(sys.argv[2]), 600.0)))"
    command = json.dumps([sys.executable, "-c", RUN, "1", "600"])
    events = tmp_path / "runs" / "1" / "events.jsonl"
    begun = [sys.executable, "-c", code, command, str(tmp_path)]
    with subprocess.Popen(begun, stdout=subprocess.PIPE, text=True, process_group=0) as process:
        while not (events.is_file() and '"task": "pretrain"' in events.read_text()):
            assert process.poll() is None
            time.sleep(0.05)
        os.killpg(process.pid, number)
        assert json.loads(process.communicate()[0])["ended"] == "cut off"


def test_a_record_of_another_device_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"subject": "proxy-pipeline"} | FACTS))
    with pytest.raises(ValueError, match="not a record of this benchmark on A100"):
        proxy_pipeline.begin(tmp_path / "record.json", FACTS | {"device": "A100"})


def test_candidates_are_counted_in_the_time_of_the_search_alone() -> None:
    """From the step's beginning to the last candidate: neither finalists nor what a cut-off lost count."""
    steps = [{"step": "pretrain", "began_s": 0.0}, {"step": "search_architecture worker=0", "began_s": 110.0}]
    calls = [
        {"began_s": 100.0, "wall_s": 50.0, "steps": steps},
        {"began_s": 200.0, "wall_s": 90.0, "steps": [{"step": "search_architecture worker=1", "began_s": 205.0}]},
        {"began_s": 300.0, "wall_s": 90.0, "steps": [{"step": "search_architecture worker=1", "began_s": 305.0}]},
    ]
    times = {"candidates": [{"ended_s": moment} for moment in (120.0, 140.0, 245.0)]}
    speed = proxy_pipeline.search_speed({"calls": calls, "trials": times})
    assert speed == {"search_s": 70.0, "candidates_in_25_minutes": round(3 / 70 * 1500, 1)}
    assert proxy_pipeline.search_speed({"calls": calls[:1], "trials": {}}) == {}


def test_what_a_run_found_is_read_from_its_report(tmp_path: Path) -> None:
    run = RunRecord(tmp_path / "run", {})
    (run.directory / "artifacts").mkdir(parents=True)
    (run.directory / "config.yaml").write_text(dump(CONFIG))
    assert proxy_pipeline.findings(run, tmp_path / "trees") == {}, "it ended before its report"
    tiny.manifest().write(run.directory / "artifacts" / "report.json")
    stored = tmp_path / "trees" / tiny.manifest().sha256 / "report.json"
    stored.parent.mkdir(parents=True)
    stored.write_text(json.dumps({"kind": "design", "run": report()}))
    found = proxy_pipeline.findings(run, tmp_path / "trees")["findings"]
    assert found["worst_winner_error"] == 0.04 and found["search"]["pruned_by_step"] == {5: 1, 10: 1}

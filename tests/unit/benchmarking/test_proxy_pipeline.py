"""benchmarks/proxy_pipeline.py with a stand-in for `flashslm run`: cut off, called again, summed up."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import proxy_pipeline
from flashslm.benchmarking.gpu_use import GpuSample
from flashslm.search.study import SearchStudy
from flashslm.search.worker import run_worker
from tests.unit.search.synthetic import loss_nats, make_proposer
from tests.unit.training.tiny import outcome

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


def test_a_run_that_was_cut_off_goes_on_in_its_record(tmp_path: Path) -> None:
    output = tmp_path / "record.json"
    record = proxy_pipeline.begin(output, FACTS)
    call(record, tmp_path, 1, seconds=60, limit_s=2)
    assert [(s["step"], s["state"], s["cached"]) for s in record["calls"][0]["steps"]] == [
        ("prepare_data", "SUCCESS", False),
        ("pretrain", "KILLED", False),
    ]
    assert record["calls"][0]["steps"][1]["duration_s"] > 0.5 and record["result"] == {}
    output.write_text(json.dumps(record))

    again = proxy_pipeline.begin(output, FACTS | {"commit": "bbbbbbb", "date": "2026-11-28"})
    assert again["commit"] == "aaaaaaa; bbbbbbb" and again["command"] == "first"
    call(again, tmp_path, 2, seconds=0, limit_s=60)
    assert [c["ended"] for c in again["calls"]] == ["cut off", "by itself"]
    assert [s["cached"] for s in again["calls"][1]["steps"]] == [True, False]
    assert again["result"] == {"state": "SUCCESS", "decision": "promote", "operators": "DF"}, "what won"
    assert again["gpu_busy_share"] == pytest.approx(0.75) and len(again["samples"]) == 4
    assert again["wall_s"] == pytest.approx(sum(c["wall_s"] for c in again["calls"]), abs=0.1)
    output.write_text(json.dumps(again))
    with pytest.raises(ValueError, match="a run that has ended: give another --output"):
        proxy_pipeline.begin(output, FACTS)


def test_a_record_of_another_device_is_not_continued(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps({"subject": "proxy-pipeline"} | FACTS))
    with pytest.raises(ValueError, match="not a record of this benchmark on A100"):
        proxy_pipeline.begin(tmp_path / "record.json", FACTS | {"device": "A100"})


def test_candidates_and_the_best_of_them_come_from_the_study(tmp_path: Path) -> None:
    assert proxy_pipeline.search_facts(tmp_path / "study.db") == {"candidates": 0}
    study = SearchStudy.open(f"sqlite:///{tmp_path / 'study.db'}", "search")
    proposer = make_proposer(trials=6, population=4, sample=2, candidates_per_cycle=3)
    run_worker(study, proposer, lambda candidate: outcome(loss_nats(candidate.operators)))
    SearchStudy.open(f"sqlite:///{tmp_path / 'study.db'}", "finalists of search")
    found = proxy_pipeline.search_facts(tmp_path / "study.db")
    best = min(study.finished(), key=lambda trial: trial.loss_nats)
    assert found["candidates"] == 6 and found["failed"] == found["pruned"] == 0
    assert found["best_trial"]["operators"] == best.operators and found["best_trial"]["loss_nats"] == best.loss_nats

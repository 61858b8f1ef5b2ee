"""Run a recipe's whole pipeline and record where its time went, how busy the GPU was, and what it found.

    .venv/bin/python benchmarks/proxy_pipeline.py --directory DIR [--config configs/h200-proxy.yaml] \
        [--max-minutes 9.5] [--output FILE] ['data.paths=[/text/*.parquet]' ...]

The run lives in DIR: stack, caches, `runs/`. After --max-minutes, or when this process is asked to end, it is ended, as
Ctrl-C would end it; the same command again goes on from there and continues the same record, whose times are sums over
all calls. Paths of a recipe's overrides are absolute, or relative to DIR. Exit code 3: cut off, call again. The last
line of stdout is the record without its samples and single trials. These (`trials`: candidates and finalists) have
each design with its latency, losses and times; `findings` has what is known of all of them together.
"""

import argparse
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from flashslm.benchmarking.gpu_use import EVERY_S, GpuSample, busy_share, gpu_samples
from flashslm.benchmarking.options import (
    INPUT,
    MINUTES,
    NEW_DIRECTORY,
    OUTPUT,
    OVERRIDE,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import provenance, read_record, result_name
from flashslm.config import RunConfig
from flashslm.config.file import load
from flashslm.experiments.pipeline_findings import of_report, search_facts, trials
from flashslm.hardware import pick_device
from flashslm.infra.process.interrupts import Terminated, terminable
from flashslm.infra.stack import embedded_stack
from flashslm.infra.state_files import require_writable, write_whole
from flashslm.infra.storage.object_store import Manifest
from flashslm.launch.local.run_records import RunRecord, all_runs
from flashslm.reporting.document import FILE

ROOT = Path(__file__).parents[1]
SUBJECT = "proxy-pipeline"
CUT_OFF = 3
SCORED_IN_S = 25 * 60  # candidates are counted per
NOT_PRINTED = {"samples", "trials"}
GRACE_S = 60.0  # in which steps finish what they are at, and save
KEPT = ("state", "decision", "failed_step", "error", "test/perplexity", "test/bits_per_byte", "latency_ms")
DESIGN = ("operators", "width", "parameters")  # of the exported model: what won


def main(given: Sequence[str] | None = None) -> int:
    parser = make_parser()
    arguments = parser.parse_args(given)
    device = pick_device("auto")
    directory = arguments.directory.resolve()
    output = (arguments.output or ROOT / "benchmarks" / "results" / f"{result_name(SUBJECT, device)}.json").resolve()
    facts = provenance(device)
    with before_work(parser):
        load(arguments.config, arguments.overrides)
        record = begin(require_writable(output), facts | {"fingerprint": facts["fingerprint"].model_dump()})
        directory.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "flashslm", "run", "--config", str(arguments.config.resolve())]
    command += ["--home", str(directory / ".flashslm"), "--json", *arguments.overrides]
    try:
        with gpu_samples() as samples:
            call = one_call(command, directory, 60 * arguments.max_minutes)
    finally:
        embedded_stack.down(directory / ".flashslm")
    add_call(record, call, samples, directory)
    write_whole(output, json.dumps(record) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key not in NOT_PRINTED}))
    return CUT_OFF if call["ended"] == "cut off" else int(record["result"].get("state") != "SUCCESS")


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument(
        "--directory", type=NEW_DIRECTORY, required=True, help="where the run, its stack and its caches live"
    )
    parser.add_argument("--config", type=INPUT, default=ROOT / "configs" / "h200-proxy.yaml")
    parser.add_argument("--max-minutes", type=MINUTES, default=math.inf, help="of this call; then the run is ended")
    parser.add_argument("--output", type=OUTPUT, help=f"default: benchmarks/results/{SUBJECT}_….json")
    parser.add_argument("overrides", nargs="*", type=OVERRIDE, help="of the recipe, such as training.steps=50")
    return parser


def begin(output: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The record of a file, to be continued, or a new one; its commits and commands are those of all calls."""
    new = {"subject": SUBJECT} | facts | {"wall_s": 0.0, "calls": [], "samples": []}
    if not output.is_file():
        return new
    there = read_record(output)
    if there.get("subject") != SUBJECT or there["device"] != facts["device"]:
        raise ValueError(f"'{output}' is not a record of this benchmark on {facts['device']}: give another --output")
    if there["result"].get("state") == "SUCCESS":
        raise ValueError(f"'{output}' is the record of a run that has ended: give another --output")
    parts = {name: dict.fromkeys([*there[name].split("; "), facts[name]]) for name in ("commit", "command")}
    return there | {name: "; ".join(part) for name, part in parts.items()}


def one_call(command: list[str], directory: Path, limit_s: float) -> dict[str, Any]:
    """Run the command in the directory until it ends, or until it is ended: after `limit_s`, or with this process.

    A signal to this process' group reaches it once, by `_end`: a second one would kill its steps at once.
    """
    began_s, ended = time.time(), "by itself"
    options: dict[str, Any] = {"cwd": directory, "stdout": subprocess.PIPE, "text": True, "process_group": 0}
    with subprocess.Popen(command, **options) as process:
        try:
            with terminable():
                text, _ = process.communicate(timeout=None if limit_s == math.inf else limit_s)
        except (subprocess.TimeoutExpired, Terminated, KeyboardInterrupt):
            ended, text = "cut off", _end(process)
    lines = [line for line in text.splitlines() if line.startswith("{")]
    facts = json.loads(lines[-1]) if lines and ended == "by itself" else {}
    return {"began_s": began_s, "wall_s": time.time() - began_s, "ended": ended, "facts": facts}


def _end(process: "subprocess.Popen[str]") -> str:
    process.send_signal(signal.SIGTERM)
    try:
        return process.communicate(timeout=GRACE_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()  # its steps end with it
        return process.communicate()[0]


def add_call(record: dict[str, Any], call: dict[str, Any], samples: list[GpuSample], directory: Path) -> None:
    """Add a call's steps and samples to the record, and sum up what is known by now."""
    facts, ends_s = call.pop("facts"), call["began_s"] + call["wall_s"]
    begun = [run for run in all_runs(directory / "runs") if _begin_s(run) > call["began_s"]]
    call["steps"] = [step for run in begun[:1] for step in _steps(run, ends_s, samples)]
    call["gpu_busy_share"] = busy_share(samples, call["began_s"], ends_s)
    record["calls"].append(call)
    record["samples"] += [[round(s.time_s, 1), s.busy_percent, s.memory_mib] for s in samples]
    everything = [GpuSample(*sample) for sample in record["samples"]]
    record["wall_s"] = round(sum(c["wall_s"] for c in record["calls"]), 1)
    record["sampled_every_s"] = EVERY_S
    record["gpu_busy_share"] = busy_share(everything, 0.0, math.inf)
    record["result"] = {key: facts[key] for key in (*KEPT, *DESIGN) if key in facts}
    database = directory / ".flashslm" / embedded_stack.STUDIES
    record["trials"] = trials(database)
    record["search"] = search_facts(database) | search_speed(record)
    for run in begun[:1]:
        record |= findings(run, directory / ".flashslm" / "trees")


def _begin_s(run: RunRecord) -> float:
    return (run.directory / "config.yaml").stat().st_mtime


def _steps(run: RunRecord, ends_s: float, samples: list[GpuSample]) -> list[dict[str, Any]]:
    """The run's steps; one that was cut off took until the call's end."""
    found = []
    for step in run.steps:
        took_s = step.duration_s or ends_s - step.started_s
        busy = busy_share(samples, step.started_s, step.started_s + took_s)
        facts = {"step": step.label, "state": step.state, "cached": step.cached}
        facts |= {"began_s": round(step.started_s, 1), "duration_s": round(took_s, 1)}
        found.append(facts | {"gpu_busy_share": busy})
    return found


def search_speed(record: dict[str, Any]) -> dict[str, float]:
    """Candidates scored in 25 minutes: in each call from the beginning of the step to the last candidate's end."""
    ended_s = [trial["ended_s"] for trial in record["trials"].get("candidates", [])]
    took_s = 0.0
    for call in record["calls"]:
        begins_s = [s["began_s"] for s in call["steps"] if s["step"].startswith("search_architecture")]
        of_call_s = [s for s in ended_s if begins_s and min(begins_s) <= s <= call["began_s"] + call["wall_s"]]
        took_s += max(of_call_s) - min(begins_s) if of_call_s else 0.0
    if not took_s:
        return {}
    return {"search_s": round(took_s, 1), "candidates_in_25_minutes": round(len(ended_s) / took_s * SCORED_IN_S, 1)}


def findings(run: RunRecord, trees: Path) -> dict[str, Any]:
    """What the run's report says; nothing where it has none."""
    manifest = run.directory / "artifacts" / "report.json"
    if not manifest.is_file():
        return {}
    config = RunConfig.model_validate(yaml.safe_load((run.directory / "config.yaml").read_text(encoding="utf-8")))
    report = json.loads((trees / Manifest.read(manifest).sha256 / FILE).read_text(encoding="utf-8"))
    return {"findings": of_report(report["run"], config)}


if __name__ == "__main__":
    sys.exit(main())

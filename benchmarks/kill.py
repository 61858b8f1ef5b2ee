"""SIGKILL local runs and their promotions at random moments, in half of the rounds the services too; look what is left.

    python benchmarks/kill.py [--kills 200] [--seed 0] [--max-minutes M] [--kinds KIND ...] [--directory DIR]
        [--output FILE]

Rounds come in four kinds, in turn. Two of them are `promotion`: the step `register_model` is killed at a moment between
the beginning of `promote` and the end of its command hook. `step` kills that step anywhere. `run` kills all processes
of a `flashslm run`, whose steps up to the gate come from the cache: anywhere, or while it registers. In every second
four rounds S3, MLflow or both are killed as well, and started again. Then the state must be the old one or the new one.
After the next attempt (the step as KFP repeats it, or the next run) it must be the new one: no version lost, champion
and previous right in the record and in MLflow, the hook called at least once, nothing left in the spool.

The record (default: benchmarks/results/kill_<device>_<date>.json) is written after each round. If the file is there,
its rounds are continued; with --directory the stack and the cache are also those of the last time, else they are made
first. The last line of stdout is the record. Exit code 1 if anything was lost.
"""

import argparse
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from typing import Any

import psutil
from kill_targets import ROOT, Bench, Run, State, Step, Target

from flashslm.benchmarking.options import (
    COUNT,
    COUNT_OR_NONE,
    MINUTES,
    NEW_DIRECTORY,
    OUTPUT,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import provenance, read_record, result_name, write_record
from flashslm.infra.stack import daemons, embedded_stack
from flashslm.infra.state_files import require_writable
from flashslm.infra.storage.audit import audit
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.infra.tracking import spool
from flashslm.infra.tracking.mlflow_client import TrackingClient

KINDS = ("promotion", "step", "promotion", "run")
SERVICES = (("s3",), ("mlflow",), ("s3", "mlflow"))


def one_round(bench: Bench, kind: str, with_services: bool, draw: random.Random, counts: Counter[str]) -> list[str]:
    """Kill once, look, let the next attempt end, look again; what is wrong."""
    moment = draw.choice(("run", "registration")) if kind == "run" else kind
    if kind == "run":
        bench.make_room()
    inputs = {} if kind == "run" else bench.candidate()
    old, versions = bench.state(), bench.versions()

    def start() -> Target:
        return Run(bench) if kind == "run" else Step(bench, inputs)

    services = draw.choice(SERVICES) if with_services else ()
    counts[f"services killed: {' and '.join(services) or 'none'}"] += 1
    is_killed = kill(bench, start(), moment, services, draw)
    counts["killed before its end" if is_killed else "ended before the kill"] += 1
    bench.settings = embedded_stack.up(bench.home)
    problems = _after_kill(bench, old, counts)
    start().finish()
    bench.end_parent()
    return problems + _after_end(bench, kind, old, versions, counts)


def kill(bench: Bench, target: Target, moment: str, services: tuple[str, ...], draw: random.Random) -> bool:
    """Kill a process, and services before or after it, at moments drawn over the duration of what `moment` names.

    Returns whether the process had not ended before.
    """
    held = [process for name in services for process in daemons.marked(f"{name}@{bench.home.resolve()}")]
    target.wait_for(moment)
    began_s, window_s = time.monotonic(), bench.duration_s(moment)
    target_at_s, services_at_s = (began_s + draw.uniform(0.0, window_s) for _ in range(2))
    for at_s, is_target in sorted([(target_at_s, True), (services_at_s, False)]):
        time.sleep(max(0.0, at_s - time.monotonic()))
        if is_target:
            was_killed = target.kill()
        else:
            for process in held:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
    return was_killed


def _after_kill(bench: Bench, old: State, counts: Counter[str]) -> list[str]:
    now, aliases = bench.state(), bench.aliases()
    heard = now[0] in bench.heard()
    counts["old state" if now == old else "new state, hook heard" if heard else "new state, hook not yet heard"] += 1
    problems = [] if now == old or now[1] == old[0] else [f"neither the old state {old} nor a new one: {now}"]
    return problems if aliases == now else [*problems, f"aliases {aliases} do not follow the record {now}"]


def _after_end(bench: Bench, kind: str, old: State, before: set[str], counts: Counter[str]) -> list[str]:
    state, versions, aliases = bench.state(), bench.versions(), bench.aliases()
    times_heard = bench.heard().count(state[0])
    counts["hook heard twice"] += times_heard > 1
    made = (1, 2) if kind == "run" else (1,)  # the next run is another one, and registers a version of its own
    client = TrackingClient(bench.settings)
    running = client.find_runs("attributes.status = 'RUNNING'", client.experiment_ids()) if kind == "run" else []
    checks = {
        f"after {old} the state is {state}": state[1] != old[0] or state[0] == old[0],
        f"versions {sorted(before - versions)} are lost": not before <= versions,
        f"{len(versions - before)} versions were registered": len(versions - before) not in made,
        f"the hook never heard of version {state[0]}": not times_heard,
        f"aliases {aliases} do not follow the record {state}": aliases != state,
        f"{len(running)} runs stay RUNNING in MLflow": bool(running),
        "metrics wait in the spool": kind == "run" and spool.spooled(),
    }
    return [problem for problem, is_wrong in checks.items() if is_wrong]


def measure(
    bench: Bench, record: dict[str, Any], kills: int, kinds: Sequence[str], until_s: float, save: Callable[[], None]
) -> None:
    """Rounds until the record has `kills` of them, none of which begins after the monotonic time `until_s`."""
    bench.calibrate(kinds)
    while record["kills"] < kills and time.monotonic() < until_s:
        number, began_s = record["kills"], time.monotonic()
        kind, with_services = kinds[number % len(kinds)], number // len(kinds) % 2 == 1
        counts = Counter(record["outcomes"].get(kind, {})) + Counter({"rounds": 1})
        try:
            found = one_round(bench, kind, with_services, random.Random(f"{record['seed']}:{number}"), counts)
        except Exception as error:
            found = [f"{type(error).__name__}: {error}"]
        took_s = time.monotonic() - began_s
        if found:
            record["problems"][str(number)] = found
        record["kills"] = number + 1
        record["duration_s"] = round(record["duration_s"] + took_s, 1)
        record["outcomes"][kind] = dict(sorted(counts.items()))
        save()
        print(f"round {number}: {kind}, {took_s:.1f} s: {'; '.join(found) or 'good'}", file=sys.stderr, flush=True)
    if damages := audit(ObjectStore(bench.settings)).damages:
        record["problems"]["store"] = [damage.problem for damage in damages]
        save()


def begin(output: Path, seed: int) -> dict[str, Any]:
    """The record of a file, to be continued, or a new one; its commits and commands are those of all pieces."""
    facts = {name: value for name, value in provenance("cpu").items() if name != "fingerprint"}
    new = {"subject": "kill"} | facts | {"duration_s": 0.0, "kills": 0, "seed": seed, "outcomes": {}, "problems": {}}
    if not output.is_file():
        return new
    there = read_record(output)
    if there.get("subject") != "kill" or not set(there["outcomes"]) <= set(KINDS) or there["seed"] != seed:
        raise ValueError(f"'{output}' is not a record of this benchmark with the seed {seed}: give another --output")
    parts = {name: dict.fromkeys([*there[name].split("; "), new[name]]) for name in ("commit", "command")}
    return there | {name: "; ".join(part) for name, part in parts.items()} | {"date": new["date"]}


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--kills", type=COUNT, default=200, help="in all, those of the file included")
    parser.add_argument("--seed", type=COUNT_OR_NONE, default=0)
    parser.add_argument("--max-minutes", type=MINUTES, default=float("inf"), help="no round begins later")
    parser.add_argument("--kinds", nargs="+", choices=sorted(set(KINDS)), default=KINDS, help="default: all four")
    parser.add_argument("--directory", type=NEW_DIRECTORY, help="kept for the next time; default: a temporary one")
    parser.add_argument("--output", type=OUTPUT, help="default: benchmarks/results/kill_….json")
    return parser


def main(given: Sequence[str] | None = None) -> None:
    parser = make_parser()
    arguments = parser.parse_args(given)
    until_s = time.monotonic() + 60 * arguments.max_minutes
    output = arguments.output or ROOT / "benchmarks" / "results" / f"{result_name('kill', 'cpu')}.json"
    with before_work(parser):
        record = begin(require_writable(output), arguments.seed)
    with ExitStack() as stack:
        kept = nullcontext(arguments.directory) if arguments.directory else None
        directory = Path(stack.enter_context(kept or tempfile.TemporaryDirectory(prefix="flashslm-kill-")))
        directory.mkdir(parents=True, exist_ok=True)
        stack.callback(embedded_stack.down, directory / "home")
        bench = Bench(directory.resolve())
        measure(
            bench,
            record,
            arguments.kills,
            arguments.kinds,
            until_s,
            lambda: write_record(output, record),
        )
    print(json.dumps(record))
    sys.exit(1 if record["problems"] else 0)


if __name__ == "__main__":
    main()

"""Time the preparation of data, measure its memory, and kill its workers at random: is the result bit for bit the same?

    python benchmarks/prepare_data.py [--gigabytes 1 10] [--workers 2] [--kills 20] [--kill-megabytes 60] [--output F]

The text is this interpreter's own library, repeated; each document begins with its number, so that none is a
duplicate. plan_data, the workers side by side and merge_data run as processes, on an S3 and an MLflow of their own.
`runs` has for each size the seconds of each part, MB/s over all, the peak memory of each part, and the seconds until a
trainer of that set has its first batch: with an empty cache, and a second time. Then a worker
prepares a smaller text, first undisturbed, then killed (SIGKILL) at random moments; `kills` says how often, and whether
the data set's digest is that of the undisturbed one. The record goes to
benchmarks/results/prepare-data_<device>_<date>.json, and is the last line of stdout. Exit code 1 if the digests differ.
"""

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashslm.benchmarking.options import COUNT, COUNT_OR_NONE, OUTPUT, POSITIVE, before_work, script_parser
from flashslm.benchmarking.record import provenance, result_name, write_record
from flashslm.config import DataConfig, RunConfig
from flashslm.data.loader import TokenLoader
from flashslm.data.sources import read_documents
from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.state_files import require_writable
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.storage.streamed_tree import StreamedTree

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
FILE_BYTES = 64_000_000
LIBRARY_BYTES = 30_000_000
SEQUENCE_LENGTH, BATCH_SIZE = 4096, 8


@dataclass
class Preparation:
    """The steps over one text, as processes; manifests are files of `directory`."""

    recipe: RunConfig
    directory: Path
    code: str = "code"
    peak_bytes: dict[str, int] = field(default_factory=dict)

    def start(self, step: str, output: str, **parameters: str) -> subprocess.Popen[bytes]:
        plan = {"plan": str(self.directory / "plan.json")} if step != "plan_data" else {}
        pieces = sorted(map(str, self.directory.glob("pieces-*.json"))) if step == "merge_data" else []
        call = {
            "name": step,
            "config": self.recipe.for_step(step),
            "inputs": plan | ({"pieces": pieces} if pieces else {}),
            "outputs": {output.partition("-")[0]: str(self.directory / f"{output}.json")},
            "parameters": {"code_digest": self.code} | parameters,
        }
        request = self.directory / f"call-{output}.json"
        request.write_text(json.dumps(call), encoding="utf-8")
        with (self.directory / f"{output}.log").open("ab") as log:
            arguments = [str(request), str(self.directory / f"result-{output}.json")]
            return subprocess.Popen([sys.executable, "-m", "flashslm.steps", *arguments], stdout=log, stderr=log)

    def finish(self, step: str, processes: Sequence[subprocess.Popen[bytes]]) -> None:
        """Wait for all of them. Their peaks are read meanwhile: what wait4 says holds the parent's own as well."""
        while any(process.poll() is None for process in processes):
            peaks = [self.peak_bytes.get(step, 0), *map(peak_memory_bytes, processes)]
            self.peak_bytes[step] = max(peaks)
            time.sleep(0.05)
        if any(process.returncode for process in processes):
            sys.exit(f"{step} failed:\n{self.log(step)}")

    def log(self, step: str) -> str:
        """The ends of the step's logs."""
        prefix = {"plan_data": "plan", "prepare_data": "pieces", "merge_data": "dataset"}[step]
        return "\n".join(file.read_text()[-2000:] for file in sorted(self.directory.glob(f"{prefix}*.log")))

    def run(self, step: str, output: str) -> float:
        began_s = time.monotonic()
        self.finish(step, [self.start(step, output)])
        return time.monotonic() - began_s

    def run_workers(self) -> float:
        began_s = time.monotonic()
        workers = range(self.recipe.data.workers)
        self.finish("prepare_data", [self.start("prepare_data", f"pieces-{w}", worker=str(w)) for w in workers])
        return time.monotonic() - began_s

    def sha256(self) -> str:
        return Manifest.read(self.directory / "dataset.json").sha256


def peak_memory_bytes(process: subprocess.Popen[bytes]) -> int:
    """The most memory that a process has held (Linux), 0 once it has ended."""
    with suppress(OSError):
        status = Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8")
        if found := re.search(r"VmHWM:\s+(\d+) kB", status):
            return 1024 * int(found[1])
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--gigabytes", type=POSITIVE, nargs="*", default=[1.0, 10.0])
    parser.add_argument("--workers", type=COUNT, default=2)
    parser.add_argument("--kills", type=COUNT_OR_NONE, default=20)
    parser.add_argument("--kill-megabytes", type=POSITIVE, default=60.0)
    parser.add_argument("--output", type=OUTPUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    asked = parser.parse_args(arguments)
    with before_work(parser):
        output = require_writable(asked.output or RESULTS / f"{result_name('prepare-data', 'cpu')}.json")
    with tempfile.TemporaryDirectory(prefix="flashslm-prepare-") as directory:
        root, home = Path(directory), Path(directory) / "home"
        try:
            os.environ |= embedded_stack.up(home).as_env() | {"FLASHSLM_SPOOL": str(root / "spool")}
            runs = [timed(root / f"{size:g}", round(size * 1e9), asked.workers) for size in asked.gigabytes]
            kills = killed(root / "kills", round(asked.kill_megabytes * 1e6), asked.kills)
        finally:
            embedded_stack.down(home)
    made = provenance("cpu")
    made |= {"subject": "prepare-data", "fingerprint": made["fingerprint"].model_dump()}
    record = made | {"runs": runs, "kills": kills}
    write_record(output, record)
    print(json.dumps(record))
    sys.exit(0 if kills["same_to_the_bit"] else 1)


def timed(directory: Path, num_bytes: int, workers: int) -> dict[str, Any]:
    preparation = prepared_text(directory, num_bytes, workers, piece_bytes=FILE_BYTES)
    seconds = {"plan_data": preparation.run("plan_data", "plan"), "prepare_data": preparation.run_workers()}
    seconds["merge_data"] = preparation.run("merge_data", "dataset")
    facts = Manifest.read(directory / "dataset.json").metadata
    total_s = sum(seconds.values())
    return {
        "bytes": facts["bytes"],
        "documents": facts["documents"],
        "workers": workers,
        "seconds": {step: round(value, 2) for step, value in seconds.items()} | {"all": round(total_s, 2)},
        "mb_per_s": round(facts["bytes"] / total_s / 1e6, 2),
        "peak_memory_bytes": preparation.peak_bytes,
        "training_start_s": {name: start_s(directory) for name in ("first", "second")},
        "cached_bytes": sum(file.stat().st_size for file in (directory / "cache").rglob("*") if file.is_file()),
    }


def start_s(directory: Path) -> float:
    """Seconds from the manifest to the first batch (8 x 4,096 tokens); the process has its imports."""
    settings = Settings.from_env()
    store, manifest = ObjectStore(settings), Manifest.read(directory / "dataset.json")
    began_s = time.monotonic()
    files = StreamedTree(store, manifest, directory / "cache", settings.data_cache_bytes)
    TokenLoader(files, "validation", SEQUENCE_LENGTH, BATCH_SIZE, seed=0)
    TokenLoader(files, "train", SEQUENCE_LENGTH, BATCH_SIZE, seed=0).batch(0)
    return round(time.monotonic() - began_s, 3)


def killed(directory: Path, num_bytes: int, kills: int) -> dict[str, Any]:
    """Workers killed until `kills` have been; a text that is finished before is prepared again from its beginning."""
    whole = prepared_text(directory, num_bytes, workers=1, piece_bytes=max(1, num_bytes // 20))
    whole.run("plan_data", "plan")
    window_s, draw, done, rounds = whole.run_workers(), random.Random(0), 0, 0
    whole.run("merge_data", "dataset")
    expected, found = whole.sha256(), set()
    while done < kills or not rounds:
        rounds += 1
        again = Preparation(whole.recipe, directory, code=f"round {rounds}")
        while (code := run_killed(again, draw.uniform(0.0, window_s) if done < kills else None)) != 0:
            done += 1
            if code != -signal.SIGKILL:
                sys.exit(f"a worker failed by itself:\n{again.log('prepare_data')}")
        again.run("merge_data", "dataset")
        found.add(again.sha256())
    return {"bytes": num_bytes, "kills": done, "rounds": rounds, "same_to_the_bit": found == {expected}}


def run_killed(preparation: Preparation, after_s: float | None) -> int:
    """The exit code of a worker that is killed `after_s` seconds after its start, unless it has ended before."""
    process = preparation.start("prepare_data", "pieces-0", worker="0")
    try:
        return process.wait(after_s)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def prepared_text(directory: Path, num_bytes: int, workers: int, piece_bytes: int) -> Preparation:
    text = directory / "text"
    text.mkdir(parents=True)
    documents, written, number = salted(), 0, 0
    while written < num_bytes:
        size = 0
        with (text / f"{number:05d}.jsonl").open("w", encoding="utf-8") as file:
            while size < min(FILE_BYTES, piece_bytes) and written + size < num_bytes:
                size += file.write(json.dumps({"text": next(documents)}) + "\n")
        written, number = written + size, number + 1
    data = {"source": "files", "paths": [f"{text}/*.jsonl"], "piece_bytes": piece_bytes, "workers": workers}
    return Preparation(RunConfig.model_validate({"name": "prepare", "data": data}), directory)


def salted() -> Iterator[str]:
    """The library over and over, in documents that begin with their number."""
    library = [document.text for document in read_documents(DataConfig(max_bytes=LIBRARY_BYTES), 0)]
    number = 0
    while True:
        for text in library:
            yield f"{number}\n{text}"
            number += 1


if __name__ == "__main__":
    main()

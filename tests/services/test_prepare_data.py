"""The steps that prepare data, on the real object store: the same data set whoever makes it and whatever is killed."""

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from flashslm.config import RunConfig
from flashslm.data.documents import SPLITS
from flashslm.data.encoding import TextEncoder
from flashslm.data.prepare import prepare_dataset
from flashslm.data.shards import SplitReader
from flashslm.infra.settings import Settings
from flashslm.infra.storage.errors import ObjectCorrupt
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.steps.prepare_data import MARKERS
from flashslm.steps.run import run_step
from tests.unit.data.corpora import make_texts, write_jsonl

pytestmark = [pytest.mark.services, pytest.mark.usefixtures("platform_env")]

# It does not come to its end: a test kills it before.
STEP = """
import json, sys, time
from flashslm.infra.events import Events
from flashslm.steps.run import run_step
emit = Events.emit

def emit_and_wait(events, event, summary="", **fields):
    emit(events, event, summary, **fields)
    if summary.startswith("12 of 12 pieces"):
        time.sleep(600)

Events.emit = emit_and_wait
run_step(**json.loads(sys.argv[1]))
"""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve files, of which each repeats some of the one before."""
    directory = tmp_path_factory.mktemp("text")
    for number in range(12):
        texts = make_texts(150, seed=number)
        write_jsonl(directory / f"{number:02d}.jsonl", texts + make_texts(20, seed=max(0, number - 1)))
    return directory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "trees"))


def recipe(text: Path, workers: int = 1) -> RunConfig:
    data = {"source": "files", "paths": [f"{text}/*.jsonl"], "vocab_size": 300, "shard_tokens": 1024}
    return RunConfig.model_validate({"name": "x", "data": data | {"piece_bytes": 60_000, "workers": workers}})


def call(step: str, config: RunConfig, directory: Path, output: str, **parameters: str) -> dict[str, Any]:
    """Arguments of run_step; manifests are files of `directory`."""
    inputs = {"plan": "plan.json"} if step == "prepare_data" else {}
    pieces = sorted(str(path) for path in directory.glob("pieces-*.json")) if step == "merge_data" else []
    return {
        "name": step,
        "config": config.for_step(step),
        "inputs": {name: str(directory / file) for name, file in inputs.items()}
        | ({"pieces": pieces} if pieces else {}),
        "outputs": {output.partition("-")[0]: str(directory / f"{output}.json")},
        "parameters": {"code_digest": str(directory), **parameters},  # of its own: markers of another test do not count
    }


def prepare(config: RunConfig, directory: Path) -> Manifest:
    directory.mkdir(exist_ok=True)
    run_step(**call("plan_data", config, directory, "plan"))
    for worker in range(config.data.workers):
        run_step(**call("prepare_data", config, directory, f"pieces-{worker}", worker=str(worker)))
    return merge(config, directory)


def merge(config: RunConfig, directory: Path) -> Manifest:
    run_step(**call("merge_data", config, directory, "dataset"))
    return Manifest.read(directory / "dataset.json")


def test_any_number_of_workers_makes_the_data_set_of_one_process(
    text: Path, store: ObjectStore, tmp_path: Path
) -> None:
    made = [prepare(recipe(text, workers), tmp_path / f"workers-{workers}") for workers in (1, 3, 7)]
    assert len({manifest.sha256 for manifest in made}) == 1
    stored = store.get_tree(made[0], tmp_path / "stored")
    summary = prepare_dataset(recipe(text).data, 0, tmp_path / "here")
    assert summary.duplicates_dropped == 240 and made[0].metadata == summary.model_dump(mode="json")
    for split in SPLITS:
        there, here = SplitReader(stored, split), SplitReader(tmp_path / "here", split)
        assert there.read(0, there.index.tokens).tolist() == here.read(0, here.index.tokens).tolist()
        assert there.index == here.index


def test_a_worker_makes_one_encoder_for_all_its_pieces(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fastokens gives back none of an encoder's memory: one per piece makes a worker grow with the text."""
    make, made = TextEncoder.__init__, []

    def counted(encoder: TextEncoder, tokenizer: Tokenizer) -> None:
        made.append(encoder)
        make(encoder, tokenizer)

    run_step(**call("plan_data", recipe(text), tmp_path, "plan"))
    monkeypatch.setattr(TextEncoder, "__init__", counted)
    assert run_step(**call("prepare_data", recipe(text), tmp_path, "pieces-0", worker="0"))["pieces"] == 12
    assert len(made) == 1


def test_a_killed_worker_goes_on_and_the_result_is_the_same_to_the_bit(text: Path, tmp_path: Path) -> None:
    expected = prepare(recipe(text), tmp_path / "whole")
    directory, config, draw = tmp_path / "killed", recipe(text), random.Random(0)
    directory.mkdir()
    run_step(**call("plan_data", config, directory, "plan"))
    arguments = call("prepare_data", config, directory, "pieces-0", worker="0")
    command = [sys.executable, "-c", STEP, json.dumps(arguments)]
    for kill_after_pieces in (3, 7, 11):
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert any(f" {kill_after_pieces} of 12 pieces" in line for line in process.stderr)
        time.sleep(draw.uniform(0.0, 0.05))  # somewhere in the next piece
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not (directory / "pieces-0.json").exists()
    again = run_step(**arguments)
    assert again["pieces"] == 12 and not again["summary"].endswith(", 0 of them made before")
    assert merge(config, directory).sha256 == expected.sha256


def test_a_finished_piece_is_not_made_again_and_a_changed_file_costs_its_own(
    text: Path, store: ObjectStore, tmp_path: Path
) -> None:
    config, directory = recipe(text), tmp_path / "d"
    prepare(config, directory)
    arguments = call("prepare_data", config, directory, "pieces-0", worker="0")
    result = run_step(**arguments)
    assert result["summary"] == f"{result['pieces']} piece(s), {result['pieces']} of them made before"
    lost = Manifest.model_validate(Manifest.read(directory / "pieces-0.json").metadata["parts"][1])
    store.delete_tree(lost)
    again = run_step(**arguments)
    assert again["summary"].endswith(f", {result['pieces'] - 1} of them made before")
    assert store.list(store.index_key(lost)), "the same bytes have the same name"


def test_a_damaged_piece_is_taken_out_and_made_again(
    text: Path, store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    config, directory = recipe(text), tmp_path / "d"
    expected = prepare(config, directory)
    piece = Manifest.model_validate(Manifest.read(directory / "pieces-0.json").metadata["parts"][0])
    key = next(key for key in store.list(store.index_key(piece).removesuffix(".index.json")) if key.endswith("00.bin"))
    store.client.put_object(Bucket=settings.bucket, Key=key, Body=b"damaged")
    with pytest.raises(ObjectCorrupt, match="the step that makes it stores it again"):
        merge(config, directory)
    run_step(**call("prepare_data", config, directory, "pieces-0", worker="0"))
    assert merge(config, directory).sha256 == expected.sha256


def test_a_missing_workers_output_is_an_error_of_its_own(text: Path, tmp_path: Path) -> None:
    config, directory = recipe(text, workers=2), tmp_path / "d"
    prepare(config, directory)
    (directory / "pieces-1.json").unlink()
    with pytest.raises(ValueError, match=r"piece 1 of \d+ is not among the workers' pieces"):
        merge(config, directory)


def test_objects_of_every_format_become_the_data_set_of_the_same_files(
    store: ObjectStore, settings: Settings, tmp_path: Path
) -> None:
    directory = tmp_path / "text"
    directory.mkdir()
    write_formats(directory, make_texts(400, seed=50))
    for file in directory.iterdir():
        store.client.upload_file(str(file), settings.bucket, f"lake/{tmp_path.name}/{file.name}")
    changes = {"data": {"paths": [f"s3://{settings.bucket}/lake/{tmp_path.name}/*"], "max_bad_rows_fraction": 0.1}}
    there = with_changes(recipe(directory, workers=2), changes)
    made = prepare(there, tmp_path / "there")
    changes["data"]["paths"] = [f"{directory}/*"]
    here = prepare_dataset(with_changes(there, changes).data, 0, tmp_path / "here")
    facts = dict(made.metadata)
    places = [row["place"] for row in facts.pop("bad_row_samples")]
    assert places == [f"s3://{settings.bucket}/lake/{tmp_path.name}/a.jsonl.gz:11"]
    expected = here.model_dump(mode="json", exclude={"bad_row_samples"})
    assert {k: v for k, v in facts.items() if k != "source"} == {k: v for k, v in expected.items() if k != "source"}
    assert facts["documents"] == 400 and facts["bad_rows"] == 1


def write_formats(directory: Path, texts: list[str]) -> None:
    """A fifth of the texts in each kind of file, the last of them in text files; one row is not JSON."""
    parts = [texts[start::5] for start in range(5)]
    for name, part in (("a.jsonl.gz", parts[0]), ("b.jsonl.zst", parts[1]), ("c.jsonl", parts[2])):
        lines = [json.dumps({"text": text}) for text in part]
        if name == "a.jsonl.gz":
            lines.insert(10, "{")
        with pa.output_stream(str(directory / name), compression="detect") as stream:
            stream.write("\n".join(lines).encode())
    pq.write_table(pa.table({"text": parts[3]}), directory / "d.parquet", row_group_size=7)
    for number, text in enumerate(parts[4]):
        (directory / f"e-{number:02d}.txt").write_text(text)


def with_changes(config: RunConfig, changes: dict[str, Any]) -> RunConfig:
    values = config.model_dump(mode="json")
    return RunConfig.model_validate(values | {name: values[name] | section for name, section in changes.items()})


def test_markers_are_records_of_the_audit() -> None:
    from flashslm.infra.storage.audit import RECORDS

    assert MARKERS in RECORDS

"""`flashslm lm-eval`: tasks on a checkpoint, an export and a model of the hub, and what is refused before they run."""

import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.config import ExportConfig
from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation.harness import Asked, run_tasks
from flashslm.export.huggingface import export_huggingface
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import save_model
from tests.unit.data.corpora import make_texts, prepare
from tests.unit.evaluation.choice_task import write_choice_task
from tests.unit.training.tiny import SIZES

VOCABULARY = 300
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a checkpoint, its export, and a task."""
    directory = tmp_path_factory.mktemp("judged")
    prepare(directory / "data", make_texts(150))
    model = HybridLM.build(build_architecture("DFMFAF", 32, SIZES, VOCABULARY), seed=0)
    (directory / "checkpoint").mkdir()
    save_model(model, directory / "checkpoint")
    (directory / "export").mkdir()
    export_huggingface(model, directory / "data" / "tokenizer", directory / "export" / "hf", ExportConfig())
    write_choice_task(directory, 20, "acc")
    return directory


def run(*arguments: Any, command: str = "lm-eval") -> Any:
    return CliRunner().invoke(app, [command, *map(str, arguments)])


def results(*arguments: Any) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    return dict(json.loads(done.stdout.splitlines()[-1])["tasks"])


@pytest.fixture
def on_the_hub(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The export as the hub's cache holds it, with which the library answers without a network."""
    published = tmp_path / "models--owner--tiny"
    shutil.copytree(place / "export" / "hf", published / "blobs")
    for part in ("refs", f"snapshots/{COMMIT}"):
        (published / part).mkdir(parents=True)
    for file in (published / "blobs").iterdir():
        (published / "snapshots" / COMMIT / file.name).symlink_to(f"../../blobs/{file.name}")
    (published / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return "hf://owner/tiny"


def test_checkpoint_export_and_hub_give_what_the_adapter_gives(place: Path, on_the_hub: str) -> None:
    task, model = place / "choice.yaml", HybridLM.build(build_architecture("DFMFAF", 32, SIZES, VOCABULARY), seed=0)
    expected, _ = run_tasks(model.eval(), load_tokenizer(place / "data" / "tokenizer"), Asked([str(task)]))
    assert expected["choice"]["samples"] == 20 and 0 < expected["choice"]["acc"] < 1
    assert results(place / "checkpoint", task, "--dataset", place / "data") == expected
    exported = results(place / "export" / "hf", task)
    assert set(exported["choice"]) == set(expected["choice"])  # its weights are in bf16
    assert results(on_the_hub, task) == results(f"{on_the_hub}@{COMMIT}", task) == exported
    assert results(on_the_hub, task, "--limit", 3)["choice"]["samples"] == 3


def test_the_table_is_the_harness_s(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    head, row = run(place / "export" / "hf", place / "choice.yaml").stdout.splitlines()[-2:]
    assert head.split() == ["task", "version", "shots", "samples", "metric", "value", "stderr"]
    assert row.split()[:4] == ["choice", "0", "20", "acc"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{place}/checkpoint", "{place}/choice.yaml"], "is a checkpoint, which has no tokenizer: give --dataset"),
        (["{place}/checkpoint", "{place}/choice.yaml", "--dataset", "{place}/export"], "is not a prepared data set"),
        (["{place}/export/hf", "preset:commonsense"], "lm_eval_tasks: there is no 'preset:commonsense'"),
        (["{place}/export/hf", "my_evaluation.yaml"], "'my_evaluation.yaml'"),
        (["{place}/export/hf", "piqa", "--task-data", "nowhere"], "task_data: the directory 'nowhere' does not exist"),
        (["nothing", "{place}/choice.yaml"], "'nothing' is not a model"),
        (["hf://tiny@x@y", "{place}/choice.yaml"], "cannot be fetched (expected hf://OWNER/NAME[@REVISION])"),
        (["hf://owner/absent", "{place}/choice.yaml"], "'hf://owner/absent' cannot be fetched"),
    ],
)
def test_bad_input_says_what_to_give(place: Path, on_the_hub: str, arguments: list[str], message: str) -> None:
    done = run(*(text.format(place=place) for text in arguments))
    assert done.exit_code == 1 and message in str(done.exception)


def test_a_checkpoint_of_another_vocabulary_is_refused(place: Path, tmp_path: Path) -> None:
    save_model(HybridLM.build(build_architecture("DF", 32, SIZES, 128), seed=0), tmp_path)
    done = run(tmp_path, place / "choice.yaml", "--dataset", place / "data")
    assert "the data set's tokenizer has 300 tokens" in str(done.exception)


NO_MODEL = [
    ("nothing", "'nothing' is not a model: give a run's directory"),
    ("hf://tiny@x@y", "cannot be fetched (expected hf://OWNER/NAME[@REVISION])"),
    ("hf://owner/absent", "'hf://owner/absent' cannot be fetched"),
]


@pytest.mark.parametrize("command", [("generate", "--prompt", "a", "--model"), ("serve", "--port", "0")])
@pytest.mark.parametrize(
    ("model", "message"), [*NO_MODEL, ("{place}/checkpoint", "is a checkpoint, which has no tokenizer")]
)
def test_a_model_to_decode_is_named_in_the_same_words(
    place: Path, on_the_hub: str, command: tuple[str, ...], model: str, message: str
) -> None:
    name, *options = command
    done = run(*options, model.format(place=place), command=name)
    assert done.exit_code == 1 and message in str(done.exception)


def test_generate_takes_a_model_of_the_hub(place: Path, on_the_hub: str) -> None:
    asked = ("--prompt", "the", "--max-new-tokens", 4, "--json", "--model")
    here, there = (run(*asked, model, command="generate") for model in (place / "export" / "hf", on_the_hub))
    assert there.exit_code == 0, there.exception
    assert json.loads(there.stdout)["text"] == json.loads(here.stdout)["text"]


def test_a_served_model_is_called_by_its_directory_or_as_it_is_named(
    place: Path, on_the_hub: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = []
    monkeypatch.setattr("flashslm.serving.server.serve", lambda directory, options, _: served.append(options.name))
    for model in (on_the_hub, place / "export" / "hf", place / "export" / "hf" / ".." / "hf"):
        assert run(model, command="serve").exit_code == 0
    assert run(on_the_hub, "--name", "mine", command="serve").exit_code == 0
    assert served == ["owner/tiny", "hf", "hf", "mine"]

"""`flashslm compare`: what a text means, which differences are shown, and that bad input says what to give."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from flashslm.cli import compare
from flashslm.cli.app import app
from flashslm.config import ExportConfig
from flashslm.evaluation.items import MetricItems, accuracy_items
from flashslm.export.huggingface import export_huggingface
from flashslm.infra.storage.object_store import Manifest
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import save_model
from flashslm.reporting.comparison import comparison_rows, render_comparison
from flashslm.steps.compare_models import compare_models, finite
from flashslm.steps.named_model import ModelFinder, NamedModel
from tests.unit.data.corpora import make_texts, prepare
from tests.unit.training.tiny import SIZES

VOCABULARY = 300


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set, a recipe, a checkpoint, the same with its embedding spoilt, and the first as an export."""
    directory = tmp_path_factory.mktemp("compared")
    prepare(directory / "data", make_texts(150))
    recipe = {
        "name": "x",
        "model": SIZES.model_dump(),
        "evaluation": {"sequence_length": 32, "needle_lengths": [40], "needle_samples": 4, "max_tokens": 600},
        "data": {"vocab_size": VOCABULARY},
    }
    (directory / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    model = HybridLM.build(build_architecture("DFMFAF", 32, SIZES, VOCABULARY), seed=0)
    for name, factor in (("one", 1.0), ("spoilt", 40.0)):
        with torch.no_grad():
            model.embedding.weight *= factor
        (directory / name).mkdir()
        save_model(model, directory / name)
        if name == "one":
            (directory / "export").mkdir()
            target = directory / "export" / "huggingface"
            export_huggingface(model, directory / "data" / "tokenizer", target, ExportConfig(dtype="float32"))
    return directory


def run(place: Path, *arguments: str) -> Any:
    return CliRunner().invoke(app, ["compare", *arguments], catch_exceptions=True)


def evaluated(place: Path, *names: str) -> list[str]:
    options = ["--config", str(place / "recipe.yaml"), "--dataset", str(place / "data")]
    return [*(str(place / name) for name in names), *options]


def test_a_checkpoint_and_its_export_are_the_same_model(place: Path) -> None:
    done = run(place, *evaluated(place, "one", "export"), "--json")
    assert done.exit_code == 0, done.output
    rows = {row["metric"]: row for row in json.loads(done.stdout)["rows"]}
    loss = rows["test/loss_nats"]
    assert loss["challenger"] == pytest.approx(loss["champion"], rel=1e-5)
    assert loss["items"] > 5 and loss["low"] - loss["champion"] == pytest.approx(0, abs=1e-4)
    assert rows["parameters"]["challenger"] == rows["parameters"]["champion"] and rows["parameters"]["low"] is None


def test_a_spoilt_model_is_worse_in_the_terminal_and_on_the_page(place: Path, tmp_path: Path) -> None:
    page = tmp_path / "made" / "table.html"
    done = run(place, *evaluated(place, "one", "spoilt"), "--html", str(page))
    assert done.exit_code == 0, done.output
    assert "worse" in done.stdout and "test/bits_per_byte" in done.stdout
    text = page.read_text()
    assert '<td class="worse">worse</td>' in text
    back = json.loads(run(place, *evaluated(place, "spoilt", "one"), "--json").stdout)
    rows = comparison_rows(back)
    assert {row["the second is"] for row in rows if row["metric"].startswith("test/l")} == {"better"}


def test_a_narrow_terminal_breaks_no_word(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    narrow = run(place, *evaluated(place, "one", "spoilt")).stdout
    words = " ".join(narrow.split())
    assert "test/bits_per_byte: worse " in words and ", 95 % interval +" in words
    assert "\nparameters" in narrow and all(len(line) <= 80 for line in narrow.splitlines()[2:])
    monkeypatch.setenv("COLUMNS", "200")
    wide = run(place, *evaluated(place, "one", "spoilt")).stdout
    assert any("95 % interval" in line and "the second is" in line for line in wide.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "nowhere"], "'nothing' is not a model: give a run's directory"),
        (["{place}/one", "{place}/export"], "has no stored evaluation, item by item: give --config and --dataset"),
        (["{place}/one", "{place}/one", "--config", "{place}/recipe.yaml"], "--config and --dataset belong together"),
    ],
)
def test_bad_input_says_what_to_give(place: Path, arguments: list[str], message: str) -> None:
    done = run(place, *(text.format(place=place) for text in arguments))
    assert done.exit_code == 1 and message in str(done.exception)


@pytest.mark.parametrize("given", ["nowhere", "{place}/one", "{place}/recipe.json"])
def test_what_is_no_data_set_is_refused_before_anything_is_evaluated(place: Path, given: str) -> None:
    Manifest(kind="evaluation", uri="s3://b/cas/aa/x", sha256="0" * 64, bytes=1).write(place / "recipe.json")
    options = ["--config", str(place / "recipe.yaml"), "--dataset", given.format(place=place)]
    done = run(place, str(place / "one"), str(place / "export"), *options)
    assert "is not a prepared data set: give its directory, or a manifest of one" in str(done.exception)
    assert "evaluating" not in done.output


def test_an_unknown_task_is_seen_before_anything_is_evaluated(place: Path) -> None:
    done = run(place, *evaluated(place, "one", "export"), "evaluation.lm_eval_tasks=[preset:nothing]")
    assert "there is no 'preset:nothing'" in str(done.exception) and "evaluating" not in done.output


def test_another_tokenizer_is_refused(place: Path, tmp_path: Path) -> None:
    prepare(tmp_path / "data", make_texts(150, seed=1, words=90))
    options = ["--config", str(place / "recipe.yaml"), "--dataset", str(tmp_path / "data")]
    done = run(place, str(place / "export"), str(place / "export"), *options)
    assert "another tokenizer than the data set" in str(done.exception)


def candidate(name: str, right: list[bool], **facts: Any) -> NamedModel:
    single = MetricItems(totals=(3.0,), weights=(2.0,), higher_is_better=False, items_sha256="one document")
    items = {"arc/acc": accuracy_items(right, "questions"), "test/loss_nats": single}
    return NamedModel(name, facts, items | ({"only": single} if name == "a" else {}))


def test_pairs_latencies_of_one_place_and_what_only_one_has() -> None:
    here = {"device": "gpu", "context": 8, "batch": 1, "parameters": 1000, "latency_ms": 2.0}
    first, second = candidate("a", [True] * 5 + [False] * 15, **here), candidate("b", [True] * 20, **here)
    compared = compare_models(first, second)
    assert [row.metric for row in compared.rows] == ["arc/acc", "test/loss_nats", "latency_ms", "parameters"]
    assert (compared.rows[0].method, compared.rows[0].p_value) == ("McNemar", pytest.approx(2**-14))
    assert compared.alone == ["only"]
    rows = {row["metric"]: row for row in comparison_rows(compared.model_dump(mode="json"))}
    assert rows["arc/acc"]["the second is"] == "better" and rows["arc/acc"]["first"].startswith("0.25 ± 0.099")
    assert rows["test/loss_nats"]["the second is"] == "cannot tell", "one document says nothing"
    assert rows["parameters"]["second"] == "1,000"
    second.facts = here | {"device": "another"}
    assert "latency_ms" not in [row.metric for row in compare_models(first, second).rows]
    assert "b beside a" in render_comparison(compared.model_dump(mode="json"))


def test_metrics_of_other_items_are_named_below_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = candidate("a", [True] * 5), candidate("b", [True] * 5)
    assert second.items is not None and compare_models(first, second).unpaired == []
    second.items["arc/acc"] = accuracy_items([True] * 4, "other questions")
    compared = compare_models(first, second)
    assert compared.unpaired == ["arc/acc"]
    values = compared.model_dump(mode="json")
    compare._show(compared, values)
    for shown in (capsys.readouterr().out, render_comparison(values)):
        assert "the difference says nothing (evaluate both by --config): arc/acc" in shown
        assert "says nothing (evaluate both by --config): test" not in shown


def test_json_has_no_infinity() -> None:
    compared = compare_models(candidate("a", [True]), candidate("b", [True]))
    text = json.dumps(finite(compared.model_dump(mode="json")), allow_nan=False)
    row = next(row for row in json.loads(text)["rows"] if row["metric"] == "test/loss_nats")
    assert row["low"] is None and row["challenger"] == 1.5


def test_no_service_is_asked_for_directories(place: Path) -> None:
    def settings() -> Any:
        raise AssertionError("asked")

    finder = ModelFinder(settings, place / "trees", place)
    assert finder.find("one").model_directory is not None, "below runs"
    assert finder.find(str(place / "export" / "huggingface")).items is None


def test_a_run_that_ended_before_its_export_is_compared_by_its_evaluation(tmp_path: Path, monkeypatch: Any) -> None:
    manifest = Manifest(kind="evaluation", uri="s3://b/cas/aa/x", sha256="0" * 64, bytes=1)
    manifest.write(tmp_path / "r1" / "artifacts" / "evaluation.json")
    finder = ModelFinder(lambda: pytest.fail("no service is needed"), tmp_path / "trees", tmp_path)
    monkeypatch.setattr(finder, "_items", lambda evaluation: {"m": accuracy_items([True, False], "x")})
    found = finder.find("r1")
    assert found.items and found.facts == {} and found.model_directory is None

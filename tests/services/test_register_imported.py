"""`flashslm models register` against the real MLflow and S3: what it registers is what retraining starts from."""

import json
import os
import shutil
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from flashslm.cli.app import app
from flashslm.config import DataConfig, ExportConfig
from flashslm.config.file import load
from flashslm.data.prepare import prepare_dataset
from flashslm.export.huggingface import export_huggingface
from flashslm.hardware import device_fingerprint
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.model_registry import IMPORTED, Lineage
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import mlflow_runs
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from flashslm.steps.run import run_step
from flashslm.training.weight_norm import project_weights_
from tests.unit.export.damage import change_json

RECIPE = Path(__file__).parents[2] / "configs" / "retraining-demo.yaml"
VOCAB = 400

pytestmark = pytest.mark.services


def text(directory: Path, letters: str) -> Path:
    """Modules of the standard library by their first letter, one per line."""
    files = sorted(p for p in Path(sysconfig.get_path("stdlib")).glob("*.py") if p.name[0] in letters)
    lines = [json.dumps({"text": p.read_text(encoding="utf-8")[:6_000]}) + "\n" for p in files]
    file = directory / f"{letters}.jsonl"
    file.write_text("".join(lines), encoding="utf-8")
    return file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text(tmp_path_factory.mktemp("text"), "abcd")


@pytest.fixture(scope="module")
def tokenizer(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("data")
    data = DataConfig(source="files", paths=(str(base),), vocab_size=VOCAB, validation_fraction=0.2)
    prepare_dataset(data, 0, directory)
    return directory / "tokenizer"


@pytest.fixture
def make(tokenizer: Path, tmp_path: Path) -> Any:
    """Export a small model to a new directory; `changes` are of its architecture."""

    def export(seed: int = 0, weight_norm: bool = False, **changes: Any) -> Path:
        values = {"operators": "DFMFAF", "hidden_size": 32, "num_heads": 2, "num_kv_heads": 1, "ffn_size": 128}
        values |= {"mamba_state": 8, "mamba_head_dim": 8, "mamba_expand": 2, "vocab_size": VOCAB + 6}
        values |= {"num_meta_tokens": 4, "max_position_embeddings": 256, "rope_theta": 1e4, "norm_eps": 1e-6}
        model = HybridLM.build(Architecture.model_validate(values | changes), seed=seed)
        if weight_norm:
            project_weights_(model)
        directory = tmp_path / f"model-{seed}-{weight_norm}"
        export_huggingface(model, tokenizer, directory, ExportConfig(dtype="float32"))
        return directory

    return export


@pytest.fixture
def overrides(base: Path) -> list[str]:
    return [
        "data.source=files",
        f"data.paths=[{base}]",
        "data.max_bytes=0",
        "data.validation_fraction=0.2",
        "training.sequence_length=64",
        "training.batch_size=2",
        "retraining.min_new_bytes=1000",
        "retraining.steps=2",
        "retraining.warmup_steps=1",
        "evaluation.sequence_length=64",
        "evaluation.max_tokens=512",
        "evaluation.needle_lengths=[48]",
        "evaluation.needle_samples=2",
        "export.parity_tokens=32",
        "profiling.repeats=3",
        "latency.context=64",
    ]


@pytest.fixture
def name() -> str:
    return f"model-{os.urandom(4).hex()}"


@pytest.fixture
def register(
    platform_env: Settings, overrides: list[str], name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "trees"))

    def run(directory: Path, *options: str, more: tuple[str, ...] = ()) -> Result:
        command = ["models", "register", str(directory), *overrides, *more, "--config", str(RECIPE), "--name", name]
        return CliRunner().invoke(app, [*command, "--home", str(tmp_path / "home"), "--json", *options])

    return run


def facts(result: Result) -> dict[str, Any]:
    assert result.exit_code == 0, result.exception
    return dict(json.loads(result.stdout))


def aliases(settings: Settings, name: str) -> dict[str, str]:
    return {alias: v.version for v in model_registry.list_versions(settings, name) for alias in v.aliases}


def test_a_version_holds_the_directory_and_what_the_gate_compares(
    register: Any, make: Any, settings: Settings, store: ObjectStore, name: str, tmp_path: Path
) -> None:
    directory = make(weight_norm=True)
    (directory / "pytorch_model.bin").write_bytes(b"nothing that is read")
    made = facts(register(directory))
    (version,) = model_registry.list_versions(settings, name)
    assert (made["version"], made["aliases"], made["new"]) == (version.version, ["challenger"], True)
    assert version.lineage.source == IMPORTED and version.lineage.parent == ""
    (dataset,) = version.lineage.data
    device = device_fingerprint("cpu").id
    interval = {
        key: version.facts.pop(key) for key in list(version.facts) if key.startswith("latency_") and key != "latency_ms"
    }
    assert interval["latency_low_ms"] < version.facts["latency_ms"] < 2 * interval["latency_high_ms"]
    assert interval["latency_over_reference_low"] < interval["latency_over_reference_high"]
    assert version.facts == {
        "sha256": version.manifest.sha256,
        "dataset_sha256": dataset.sha256,
        "perplexity": pytest.approx(made["perplexity"]),
        "latency_ms": version.lineage.latency_ms[device],
        "parameters": sum(t.numel() for t in load_file(directory / "model.safetensors").values()),
        "device": device,
        "full_perplexity": None,  # nothing is rounded
    }
    assert 0.5 * VOCAB < made["perplexity"] < 10 * VOCAB  # nothing was learned yet
    assert version.manifest.metadata["weight_norm"] == "on" and version.manifest.kind == "exported"
    stored = store.get_tree(version.manifest, tmp_path / "stored") / "huggingface"
    kept = {path.name for path in directory.iterdir()} - {"pytorch_model.bin"}
    assert {path.name for path in stored.iterdir()} == kept
    assert all((stored / file).read_bytes() == (directory / file).read_bytes() for file in kept)
    assert CliRunner().invoke(app, ["models", "list", "--name", name]).stdout.count("imported") == 1


def test_8_bits_are_measured_as_they_are_served(register: Any, make: Any, settings: Settings, name: str) -> None:
    directory = make()
    change_json(directory / "config.json", served_weights="int8")
    made = facts(register(directory))
    before = model_registry.list_versions(settings, name)[0].facts["full_perplexity"]
    assert 0 < abs(made["perplexity"] / before - 1) < 0.01


def test_the_same_files_are_one_version_and_measured_once(
    register: Any, make: Any, settings: Settings, name: str, tmp_path: Path
) -> None:
    directory = make()
    first = facts(register(directory))
    again = facts(register(shutil.copytree(directory, tmp_path / "copy")))
    assert again == first | {"new": False}
    champion = facts(register(directory, "--alias", "champion"))
    assert champion == first | {"new": False, "aliases": ["champion"]}
    assert facts(register(directory, "--alias", "champion")) == champion
    assert facts(register(directory)) == champion
    assert aliases(settings, name) == {"champion": first["version"]}
    assert len(model_registry.list_versions(settings, name)) == 1 and first["weight_norm"] == "off"


def test_a_champion_is_replaced_only_by_name(register: Any, make: Any, settings: Settings, name: str) -> None:
    first = facts(register(make(0), "--alias", "champion"))["version"]
    refused = register(make(1), "--alias", "champion")
    assert (
        refused.exit_code == 1
        and f"champion of '{name}' is version {first}, to be replaced was version none" in str(refused.exception)
    )
    assert "say --replaces VERSION" in str(refused.exception)
    assert register(make(2), "--alias", "champion", "--replaces", "99").exit_code == 1
    assert register(make(3), "--replaces", first).exit_code == 1
    assert [v.version for v in model_registry.list_versions(settings, name)] == [first]
    second = facts(register(make(4), "--alias", "champion", "--replaces", first))["version"]
    assert aliases(settings, name) == {"champion": second, "previous": first}


def test_the_hook_hears_of_a_new_champion_and_of_nothing_else(
    register: Any, make: Any, settings: Settings, name: str, tmp_path: Path
) -> None:
    directory, heard = make(), tmp_path / "heard"
    hook = (f"gate.promotion_hook.command=[sh, -c, 'cat >> {heard} && echo >> {heard}']",)
    assert facts(register(directory, more=hook))["hook"] == ""
    first = facts(register(directory, "--alias", "champion", more=hook))
    assert first["hook"].startswith("delivered")
    assert facts(register(directory, "--alias", "champion", more=hook))["hook"] == ""
    failing = ("gate.promotion_hook.command=[sh, -c, 'exit 3']", "gate.promotion_hook.attempts=1")
    failed = register(make(1), "--alias", "champion", "--replaces", first["version"], more=failing)
    assert failed.exit_code == 1 and json.loads(failed.stdout)["hook"].startswith("failed")
    assert aliases(settings, name) == {"champion": "2", "previous": "1"}
    (message,) = [json.loads(line) for line in heard.read_text().splitlines()]
    assert (message["event"], message["version"], message["previous_version"]) == ("promotion", "1", "")


def retrain(name: str, config: Any, directory: Path) -> dict[str, dict[str, Any]]:
    """The pipeline's steps up to the gate, in this process; their results."""

    def step(step: str, inputs: tuple[str, ...], outputs: tuple[str, ...], **renamed: str) -> dict[str, Any]:
        sources = {each: each for each in inputs} | renamed
        return run_step(
            step,
            config=config.for_step(step),
            inputs={each: str(directory / f"{source}.json") for each, source in sources.items()},
            outputs={each: str(directory / f"{each}.json") for each in outputs},
        )

    return {
        "fetched": step("fetch_champion", (), ("champion", "deployed")),
        "prepared": step("prepare_new_data", ("champion",), ("dataset",)),
        "trained": step("continue_pretraining", ("champion", "deployed", "dataset"), ("checkpoint",)),
        "exported": step("export_model", ("dataset",), ("exported",), chosen="checkpoint"),
        "compared": step("compare_with_champion", ("champion", "deployed", "dataset", "exported"), ("evaluation",)),
        "judged": step("gate_challenger", ("champion", "exported", "evaluation"), ("verdict",)),
    }


def test_retraining_starts_from_what_was_registered(
    register: Any, make: Any, overrides: list[str], base: Path, name: str, tmp_path: Path
) -> None:
    registered = facts(register(make(weight_norm=True), "--alias", "champion"))
    fresh = text(tmp_path, "ij")
    config = load(RECIPE, [*overrides, f"gate.model_name={name}", f"data.paths=[{base},{fresh}]"])
    results = retrain(name, config, tmp_path / "artifacts")
    assert results["fetched"]["champion_version"] == registered["version"]
    assert results["prepared"]["decision"] == "retrain"
    known, new = (len(file.read_text().splitlines()) for file in (base, fresh))
    assert (results["prepared"]["read_documents"], results["prepared"]["seen_documents"]) == (known + new, known)
    deployed = Manifest.read(tmp_path / "artifacts" / "deployed.json")
    assert deployed.sha256 == registered["sha256"]
    evaluated = Manifest.read(tmp_path / "artifacts" / "evaluation.json")
    document = json.loads((tmp_path / "trees" / evaluated.sha256 / "evaluation.json").read_text())
    champion = document["results"]["first data"]["champion"]["test/perplexity"]
    assert champion == pytest.approx(registered["perplexity"], rel=1e-6)  # the same weights, data and code
    assert Manifest.read(tmp_path / "artifacts" / "exported.json").metadata["weight_norm"] == "on"
    assert results["judged"]["decision"] in ("promote", "hold")


def test_a_recipe_with_longer_texts_does_not_retrain(
    register: Any, make: Any, overrides: list[str], name: str, tmp_path: Path
) -> None:
    register(make(), "--alias", "champion")
    longer = ["training.sequence_length=256", "evaluation.needle_lengths=[48,300]"]
    config = load(RECIPE, [*overrides, f"gate.model_name={name}", *longer])
    with pytest.raises(ValueError, match="version 1 cannot be retrained by this recipe") as refused:
        retrain(name, config, tmp_path / "artifacts")
    for where in ("training.sequence_length is 256", "evaluation.needle_lengths is 300"):
        assert f"the recipe's {where}, the model has positions for 252 text tokens" in str(refused.value)


def replace_by_link(directory: Path, name: str = "README.md") -> None:
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to("/etc/passwd")


def replace_by_pipe(directory: Path, name: str) -> None:
    (directory / name).unlink(missing_ok=True)
    os.mkfifo(directory / name)


def change_code(directory: Path) -> None:
    with (directory / "modeling_nemotron_flash.py").open("a") as file:
        file.write("# and more\n")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (replace_by_link, "README.md' is a link or no file: register a copy"),
        (lambda d: replace_by_link(d, "LICENSE"), "LICENSE' is a link or no file"),
        (lambda d: replace_by_link(d, "tokenizer.json"), "tokenizer.json' is a link or no file"),
        (lambda d: replace_by_link(d, "model.safetensors"), "model.safetensors' is a link or no file"),
        (lambda d: replace_by_pipe(d, "README.md"), "README.md' is a link or no file"),
        (lambda d: replace_by_pipe(d, "config.json"), "config.json' is a link or no file"),
        (lambda d: replace_by_pipe(d, "model.safetensors"), "model.safetensors' is a link or no file"),
        (lambda d: replace_by_pipe(d, "modeling_nemotron_flash.py"), "modeling_nemotron_flash.py: a link or no file"),
        (change_code, "modeling_nemotron_flash.py: not this project's code"),
        (lambda d: (d / "setup.py").write_text("import os"), "setup.py: no file of this format"),
    ],
)
def test_links_pipes_and_other_code_are_refused(
    damage: Any, expected: str, register: Any, make: Any, settings: Settings, name: str
) -> None:
    directory = make()
    damage(directory)
    refused = register(directory)
    assert refused.exit_code == 1 and expected in str(refused.exception)
    assert model_registry.list_versions(settings, name) == []


def test_other_code_is_stored_where_a_person_says_so(
    register: Any, make: Any, settings: Settings, store: ObjectStore, name: str, tmp_path: Path
) -> None:
    directory = make()
    change_code(directory)
    (directory / "notes.txt").write_text("of no format")
    facts(register(directory, "--foreign-code"))
    (version,) = model_registry.list_versions(settings, name)
    stored = store.get_tree(version.manifest, tmp_path / "stored") / "huggingface"
    assert (stored / "modeling_nemotron_flash.py").read_text().endswith("# and more\n")
    assert not (stored / "notes.txt").exists()


def damage_config(directory: Path, **fields: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def untie(directory: Path) -> None:
    damage_config(directory, tie_word_embeddings=False)
    tensors = load_file(directory / "model.safetensors")
    save_file(tensors | {"lm_head.weight": torch.zeros(VOCAB + 6, 32)}, directory / "model.safetensors")


def without_an_end(directory: Path) -> None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        (directory / file).write_text("{}")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda d: (d / "tokenizer.json").unlink(), "has no tokenizer.json: an export needs a fast tokenizer"),
        (without_an_end, "names no eos_token: add one to tokenizer_config.json"),
        (lambda d: damage_config(d, layer_types=["gated_deltanet"] * 6), "layer_types has gated_deltanet"),
        (lambda d: damage_config(d, sliding_window=64), "sliding_window is 64"),
        (
            lambda d: damage_config(d, max_position_embeddings=67),
            "sequence_length is 64, the model has positions for 63",
        ),
        (untie, "lm_head.weight differs from model.embed_tokens.weight"),
        (shutil.rmtree, "has no config.json"),
    ],
    ids=["tokenizer", "end", "operator", "window", "length", "head", "directory"],
)
def test_what_cannot_be_retrained_is_refused(
    damage: Any, expected: str, register: Any, make: Any, settings: Settings, name: str
) -> None:
    directory = make()
    damage(directory)
    refused = register(directory, "--alias", "champion")
    assert refused.exit_code == 1 and isinstance(refused.exception, ValueError)
    assert expected in str(refused.exception) and str(directory) in str(refused.exception)
    assert model_registry.list_versions(settings, name) == []


def test_sizes_that_no_export_of_the_retrained_model_could_hold_are_refused(
    register: Any, make: Any, settings: Settings, name: str
) -> None:
    directory = make(mamba_head_dim=4)  # 16 heads; as 8 heads of 8 they would be right, as 4 of 16 not
    damage_config(directory, mamba2_headdim=16)
    tensors = load_file(directory / "model.safetensors")
    for key in ("dt_bias", "A_log", "D"):
        tensors[f"model.layers.2.mamba.{key}"] = torch.ones(4)
    tensors["model.layers.2.mamba.in_proj.weight"] = torch.ones(2 * 64 + 2 * 8 + 4, 32)
    save_file(tensors, directory / "model.safetensors")
    refused = register(directory)
    assert "cannot be retrained: 4 Mamba-2 heads" in str(refused.exception)
    assert model_registry.list_versions(settings, name) == []


def test_of_two_that_register_the_same_tree_one_makes_the_version(
    settings: Settings, store: ObjectStore, name: str, tmp_path: Path
) -> None:
    (tmp_path / "weights").write_text("the same")
    manifest = store.put_tree(tmp_path, "exported")
    runs = [mlflow_runs.start_parent_run(settings, f"register-{i}") for i in range(4)]
    lineage = Lineage(data=(manifest,), source=IMPORTED)
    with ThreadPoolExecutor(4) as pool:
        made = list(
            pool.map(lambda run: model_registry.register(settings, name, manifest, run, {}, None, lineage), runs)
        )
    for run in runs:
        mlflow_runs.finish_run(settings, run, "FINISHED")
    assert len(set(made)) == 1 and len(model_registry.list_versions(settings, name)) == 1
    other = next(run for run in runs if run != model_registry.find(settings, name, made[0]).run_id)
    assert model_registry.register(settings, name, manifest, other, {}, lineage=Lineage(data=(manifest,))) not in made

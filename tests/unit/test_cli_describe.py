"""`flashslm describe`: what each kind of source gives, and what a person sees."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.cli.describe import read_architecture, readable
from flashslm.export.hf_config import config_from_architecture
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.presets import preset

ROOT = Path(__file__).parents[2]
FLASH = preset("nemotron-flash-1b")


def describe(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["describe", *arguments, "--device", "NVIDIA H100 80GB HBM3"])
    assert result.exit_code == 0, result
    return result.stdout


def write(path: Path, facts: dict) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(facts), encoding="utf-8")
    return path


def test_json_has_every_number() -> None:
    found = json.loads(describe("nemotron-flash-1b", "--json", "--context", "4096", "--batch", "2"))
    assert found["operators"] == FLASH.operators and found["notation"] == "(DFMFAFMF)x2 (DFMF)x2"
    assert found["parameters"]["total"] == 965_389_440 and found["parameters"]["embedding"] == 268_435_456
    assert (found["context"], found["batch"], found["device"]) == (4096, 2, "NVIDIA H100 80GB HBM3")
    assert found["kv_bytes_per_token"] == 4096 and found["kv_bytes_per_sequence"] == 4096 * 4096
    moved = 2 * (965_389_440 - 256 * 2048) + 2 * (4096 * 4096 + 2 * found["state_bytes_per_sequence"])
    assert found["decode_bytes_per_token"] == moved
    assert found["floor_ms_per_token"] == pytest.approx(moved / 3.35e9)
    assert found["flops_per_token"] > 2 * 965e6
    assert found["exportable"] is True and found["export_blockers"] == []


def test_a_person_sees_readable_sizes() -> None:
    lines = dict(line.split(maxsplit=1) for line in describe("nemotron-flash-1b").splitlines())
    assert lines["operators"] == "(DFMFAFMF)x2 (DFMF)x2  (24)"
    assert lines["parameters"] == "965,389,440"
    assert lines["deltanet"] == "67,346,944  (7.0%)" and "gla" not in lines
    assert lines["KV"] == "cache       4.10 kB per token, 33.55 MB per sequence"
    assert lines["states"] == "17.08 MB per sequence"
    assert lines["floor"] == "0.5963 ms/token by memory bandwidth"
    assert lines["export"] == "yes"


def test_why_it_cannot_be_exported() -> None:
    found = json.loads(describe("qwen3-0.6b", "--json"))
    assert found["exportable"] is False
    assert found["export_blockers"] == [
        "16 heads of head_dim 128 are 2048 channels: hidden_size, 1024, must be as many"
    ]
    assert "no: 16 heads of head_dim 128" in describe("qwen3-0.6b")


@pytest.mark.parametrize("name", ["architecture.json", "model/architecture.json", "other-name.json"])
def test_architecture_file(name: str, tmp_path: Path) -> None:
    expected = FLASH.model_copy(update={"operators": "GFLFWF", "window": 99})
    file = write(tmp_path / name, expected.model_dump())
    assert read_architecture(str(file)) == expected
    if file.name == "architecture.json":
        assert read_architecture(str(file.parent)) == expected
    assert "window 99" in describe(str(file))


def test_exported_directory(tmp_path: Path) -> None:
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    file = write(tmp_path / "config.json", config_from_architecture(FLASH, "bfloat16", ids))
    assert read_architecture(str(tmp_path)) == read_architecture(str(file)) == FLASH


def test_a_recipe_is_its_latency_reference_and_says_what_it_assumes() -> None:
    recipe = str(ROOT / "configs" / "nemotron-flash-1b.yaml")
    assert read_architecture(recipe) == FLASH.model_copy(update={"vocab_size": 4096})
    assert "is not known before it is fetched: data.vocab_size, 4096, is taken" in describe(recipe)
    assert json.loads(describe(recipe, "--json"))["assumptions"]
    assert not json.loads(describe(str(ROOT / "configs" / "demo.yaml"), "--json"))["assumptions"]


def test_a_recipe_s_own_sizes(tmp_path: Path) -> None:
    recipe = tmp_path / "own.yaml"
    recipe.write_text((ROOT / "configs/smoke.yaml").read_text().replace("name: smoke", "name: own"), encoding="utf-8")
    found = read_architecture(str(recipe))
    assert (found.operators, found.hidden_size, found.head_dim, found.vocab_size) == ("DFMF", 64, 16, 512)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("{", "describes no architecture"),
        ('{"kind": "architecture", "uri": "s3://b/x", "sha256": "00"}', "it is the manifest of a stored object"),
        ("[1]", "describes no architecture: .* not a JSON object"),
        ('{"operators": "DF"}', "describes no architecture: hidden_size: Field required; num_heads: Field"),
        ('{"hidden_size": 3}', "describes no architecture: config.json: .*vocab_size is missing"),
    ],
)
def test_a_file_of_something_else(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "architecture.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=expected):
        read_architecture(str(tmp_path))


@pytest.mark.parametrize("source", ["nemotron", "", "configs/none.yaml"])
def test_unknown_source_says_what_is_allowed(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"'{source}' is neither a preset .nemotron-flash-1b, .* nor a recipe"):
        read_architecture(source)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.00 kB"), (33_554_432, "33.55 MB"), (2.5e12, "2500.00 GB")],
)
def test_readable_bytes(value: float, shown: str) -> None:
    assert readable(value, "B") == shown


def test_built_architectures_have_the_same_description_as_their_file(tmp_path: Path) -> None:
    from flashslm.config import ModelConfig

    built: Architecture = build_architecture("(DF)x3 | WF", 128, ModelConfig(window=64), vocab_size=300)
    file = write(tmp_path / "architecture.json", built.model_dump())
    found = json.loads(describe(str(file), "--json", "--context", "100"))
    assert found["kv_bytes_per_token"] == 0
    assert found["kv_bytes_per_sequence"] == 64 * 2 * built.num_kv_heads * 64 * 2
    assert found["export_blockers"] == [
        "operator W (window_attention): the class reads any sliding window as a window of one token"
    ]

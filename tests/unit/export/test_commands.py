"""The commands on exported directories, as a person and a script see them."""

import json
import shutil

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.models.serialization import load_model


@pytest.fixture
def flashslm():
    return lambda *arguments: CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture
def broken_dir(exported_dir, tmp_path):
    directory = shutil.copytree(exported_dir, tmp_path / "broken")
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"num_memory_tokens": 4, "eos_token_id": 7}))
    return directory


def test_verify_export_says_what_it_checked(flashslm, exported_dir):
    result = flashslm("verify-export", exported_dir)
    assert result.exit_code == 0 and result.stdout.count("\n") == 1
    assert result.stdout.endswith("checked: 50 tensors, 36 fields, 9 files\n")
    assert json.loads(flashslm("verify-export", exported_dir, "--json").stdout) == {
        "directory": str(exported_dir),
        "problems": [],
        "tensors": 50,
        "fields": 36,
        "files": 9,
    }


def test_verify_export_names_every_problem(flashslm, broken_dir):
    result = flashslm("verify-export", broken_dir)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "model.memory_tokens: shape is [5, 32], expected [4, 32]",
        "tokenizer_config.json: eos_token has id 0, config.json's eos_token_id is 7",
        "special_tokens_map.json: eos_token has id 0, config.json's eos_token_id is 7",
        "generation_config.json: eos_token_id is 0, not 7",
    ]
    result = flashslm("verify-export", broken_dir, "--json")
    assert result.exit_code == 1
    assert [p["subject"] for p in json.loads(result.stdout)["problems"]] == [
        "model.memory_tokens",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "generation_config.json",
    ]


def test_verify_export_names_a_directory_that_is_not_there(flashslm, tmp_path):
    result = flashslm("verify-export", tmp_path / "none")
    assert result.exit_code == 1
    expected = "no such directory: give an export such as runs/latest/export/huggingface"
    assert result.stdout == f"{tmp_path / 'none'}: {expected}\n"


def test_a_short_model_is_described_at_its_own_length(flashslm, exported_dir):
    found = json.loads(flashslm("describe", exported_dir, "--json").stdout)
    assert (found["context"], found["kv_bytes_per_sequence"], found["assumptions"]) == (256, 256 * 64, [])
    beyond = json.loads(flashslm("describe", exported_dir, "--json", "--context", "257").stdout)
    assert beyond["assumptions"] == ["a context of 257, though the model has 256 positions"]


def test_import_prints_and_writes(flashslm, exported_dir, model, tmp_path):
    result = flashslm("import", exported_dir, "--output", tmp_path / "out")
    assert result.exit_code == 0
    for expected in ("DFMFAFM", "float32", "output_row_norm_min"):
        assert expected in result.stdout
    assert "do not divide" in result.stderr
    assert load_model(tmp_path / "out").architecture == model.architecture


def test_import_without_an_output_only_reports(flashslm, exported_dir, model, tmp_path):
    result = flashslm("import", exported_dir, "--json")
    summary = json.loads(result.stdout)
    assert summary["num_parameters"] == sum(p.numel() for p in model.parameters())
    assert summary["output"] == "" and len(summary["warnings"]) == 1


def test_import_refuses_with_every_reason(flashslm, broken_dir):
    result = flashslm("import", broken_dir)
    assert result.exit_code == 1 and "model.memory_tokens: shape is [5, 32]" in str(result.exception)


def test_generate_prints_the_text_as_it_comes(flashslm, exported_dir, monkeypatch):
    arguments = ("generate", "--model", exported_dir, "--prompt", "the cat", "--max-new-tokens", 12)
    whole = json.loads(flashslm(*arguments, "--json").stdout)
    printed = []
    monkeypatch.setattr("builtins.print", lambda *texts, **options: printed.append((*texts, options)))
    assert flashslm(*arguments).exit_code == 0
    *pieces, end = printed
    assert pieces[0] == ("the cat", {"end": "", "flush": True}) and end == ({},)
    assert "".join(text for text, _ in pieces[1:]) == whole["text"] and len(pieces) > 5


def test_generate_ends_before_a_stop(flashslm, exported_dir):
    arguments = ("generate", "--model", exported_dir, "--prompt", "the cat", "--max-new-tokens", 12, "--json")
    text = json.loads(flashslm(*arguments).stdout)["text"]
    stopped = json.loads(flashslm(*arguments, "--stop", "no such text", "--stop", text[6:8]).stdout)
    assert (stopped["text"], stopped["finish_reason"]) == (text.split(text[6:8])[0], "stop")
    refused = flashslm(*arguments, "--stop", "")
    assert refused.exit_code == 1 and "a stop string is empty" in str(refused.exception)

"""`flashslm bench`: what a person and a script read."""

import json

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.cli.bench import finish


@pytest.fixture
def model(tmp_path, qwen3) -> str:
    file = tmp_path / "architecture.json"
    file.write_text(qwen3.model_dump_json(), encoding="utf-8")
    return str(file)


def bench(*arguments: str):
    return CliRunner().invoke(app, ["bench", *arguments])


def test_decode_ends_with_its_json(model, tmp_path):
    output = tmp_path / "results" / "decode.json"
    sizes = ("--context", "20", "--new-tokens", "5", "--batch", "2", "--repeats", "1", "--dtype", "float32")
    result = bench(
        "decode", "--model", model, *sizes, "--peer", "hf", "--kernels", "decode=torch", "--output", str(output)
    )
    assert result.exit_code == 0, result
    *table, last = result.stdout.splitlines()
    found = json.loads(last)
    assert (found["preset"], found["context"], found["new_tokens"], found["batch"]) == (model, 20, 5, 2)
    assert (found["dtype"], found["repeats"], found["peer"]["preset"]) == ("float32", 1, model)
    assert json.loads(output.read_text()) == found
    lines = {line.split("  ")[0]: line for line in table}
    assert f"{found['tpot_ms_median']:.4f} ms median" in lines["TPOT"]
    assert f"{found['peer']['ratio']:.2f} times ours" in lines["peer"]
    assert f"{found['operator_share']['attention']:.1%}" in lines["attention"]
    assert "data sheet" not in lines["MBU"]  # none is known for a CPU


def test_throughput_ends_with_its_json(model):
    result = bench("throughput", "--model", model, "--context", "40", "--new-tokens", "4", "--batch", "3")
    assert result.exit_code == 0, result
    found = json.loads(result.stdout.splitlines()[-1])
    assert (found["batch"], found["context"], found["new_tokens"], found["largest"]) == (3, 40, 4, False)
    assert "3, as given" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decode", "--preset", "gpt2"), "preset 'gpt2' is unknown: choose one of nemotron-flash-1b"),
        (("decode",), "give one of --preset, such as --preset nemotron-flash-1b, and --model"),
        (("decode", "--preset", "qwen3-0.6b", "--model", "x"), "give one of --preset"),
        (("decode", "--model", "nowhere"), "'nowhere' is neither a preset"),
        (("decode", "--preset", "qwen3-0.6b", "--batch", "0"), "batch is 0: at least 1"),
        (
            ("decode", "--preset", "nemotron-flash-1b", "--context", "32768"),
            "context 32768 and 256 new tokens are beyond the 32768 text positions of 'nemotron-flash-1b'",
        ),
        (("decode", "--preset", "qwen3-0.6b", "--kernels", "decode"), "kernels: decode=: Input should be 'auto'"),
        (("throughput", "--preset", "qwen3-0.6b", "--batch", "most"), "batch is 'most': give a number"),
        (("throughput", "--preset", "qwen3-0.6b", "--batch", "-2"), "batch is -2: at least 1"),
        (("throughput", "--preset", "qwen3-0.6b", "--context", "9"), "context is 9: above the 64 steps that end there"),
    ],
)
def test_errors_say_what_is_allowed(arguments, message):
    result = bench(*arguments)
    assert isinstance(result.exception, ValueError) and message in str(result.exception)


@pytest.mark.parametrize("command", ["decode", "throughput", "training"])
@pytest.mark.parametrize("path, said", [("", "is a directory"), ("file/x.json", "nothing can lie below it")])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(model, tmp_path, command, path, said):
    (tmp_path / "file").touch()
    result = bench(command, "--model", model, "--output", str(tmp_path / path))
    assert result.exit_code == 2 and said in " ".join(result.stderr.replace("│", " ").split())
    assert not result.stdout


def test_a_result_is_printed_even_if_its_file_cannot_be_written(tmp_path, qwen3, capsys):
    with pytest.raises(IsADirectoryError):
        finish(qwen3, tmp_path)
    assert json.loads(capsys.readouterr().out) == json.loads(qwen3.model_dump_json())


def test_a_width_below_zero_is_refused_as_an_option(model):
    """It is a multiple of what keeps heads whole; the architecture's own checks would not name the option."""
    result = bench("training", "--model", model, "--width", "-32")
    assert result.exit_code == 2 and "greater than or equal to 0" in result.stderr

"""Every script of benchmarks/: it can be started, and what it cannot use it refuses before it works, by exit code 2."""

import argparse
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.harness_equality import LIMIT
from benchmarks.machine_code import GPU_ARCHITECTURE
from benchmarks.recall_filter import DESIGN
from benchmarks.training import MODEL
from flashslm.benchmarking import options
from flashslm.benchmarking.options import NumberType, OptionType

FOLDER = Path(__file__).parents[3] / "benchmarks"
MAIN = 'if __name__ == "__main__":'
SCRIPTS = sorted(file.stem for file in FOLDER.glob("*.py") if MAIN in file.read_text(encoding="utf-8"))
# Of each type a text that it takes, then texts that it refuses with a part of the message; `file` and `folder` exist.
TEXTS: dict[OptionType, tuple[str, dict[str, str]]] = {
    options.OUTPUT: ("new/record.json", {"folder": "is a directory", "file/x.json": "is a file"}),
    options.INPUT: ("file", {"absent": "is not a file", "folder": "is not a file"}),
    options.DIRECTORY: ("folder", {"absent": "is not a directory", "file": "is not a directory"}),
    options.NEW_DIRECTORY: ("new", {"file": "is a file", "file/new": "is a file"}),
    options.TEXT: ("name", {"": "is empty"}),
    options.OPERATORS: ("DF", {"XF": "unknown", "": "empty"}),
    DESIGN: ("d=DF", {"DF": "has no name", "d=X": "design 'X'"}),
    options.OVERRIDE: ("seed=1", {"seed": "section.key=value"}),
    options.KERNEL: ("decode=torch", {"decode=fast": "Input should be", "x=torch": "not an operation"}),
    MODEL: ("qwen3-0.6b", {"gpt2": "neither a preset", "absent.json": "neither a preset"}),
    LIMIT: ("piqa=8", {"piqa": "TASK=ITEMS", "piqa=-1": "TASK=ITEMS"}),
    GPU_ARCHITECTURE: ("sm_90", {"hopper": "such as sm_90"}),
}


def script(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))  # where Python looks when a script is started
    return importlib.import_module(f"benchmarks.{name}")


def given_options(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    yield from (action for action in parser._actions if action.nargs != 0)  # flags and --help take no text


def refusals(action: argparse.Action) -> dict[str, str]:
    """Texts that an option or argument must refuse, and what the message says."""
    if action.choices is not None:
        return {"-7": "choose from"}
    if isinstance(action.type, NumberType):
        low = action.type.least if action.type.above else action.type.least - 1
        beyond = {} if action.type.unlimited else {"inf": action.type.allowed}
        return dict.fromkeys([f"{low:g}", "nan", "x"], action.type.allowed) | beyond
    assert isinstance(action.type, OptionType), (
        f"{action.dest}: give it choices, or a type of benchmarking/options.py that refuses what cannot be used"
    )
    return TEXTS[action.type][1]


def good(action: argparse.Action) -> str:
    if action.choices is not None:
        return str(next(iter(action.choices)))
    if isinstance(action.type, NumberType):
        return f"{action.type.least + 1:g}"
    return TEXTS[action.type][0]  # type: ignore[index]


def call(parser: argparse.ArgumentParser, wrong: argparse.Action | None = None, text: str = "") -> list[str]:
    """Arguments with all that is required and, among them, one wrong text."""
    named: list[str] = []
    places: list[str] = []
    for action in given_options(parser):
        if action is wrong or action.required:
            count = action.nargs if isinstance(action.nargs, int) else 1
            texts = [text if action is wrong else good(action)] * count
            if action.option_strings:
                joined = (
                    [f"{action.option_strings[-1]}={texts[0]}"] if count == 1 else [action.option_strings[-1], *texts]
                )
                named += joined
            else:
                places += texts
    return [*places, *named]


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("{}")
    (tmp_path / "folder").mkdir()


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.py")))
def test_it_can_be_imported(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    script(name, monkeypatch)


@pytest.mark.parametrize("name", SCRIPTS)
def test_every_option_refuses_what_the_script_cannot_use(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parser = script(name, monkeypatch).make_parser()
    parser.parse_args(call(parser))
    for action in given_options(parser):
        for text, message in refusals(action).items():
            with pytest.raises(SystemExit) as ended:
                parser.parse_args(call(parser, action, text))
            said = " ".join(capsys.readouterr().err.split())
            shown = "/".join(action.option_strings) or action.metavar or action.dest
            assert ended.value.code == 2 and f"argument {shown}: " in said and message in said, (shown, text)


@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_reads_its_arguments_by_that_parser(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = script(name, monkeypatch)
    parser = module.make_parser()
    output: Any = next((action for action in given_options(parser) if action.dest == "output"), None)
    wrong = call(parser, output, "folder") if output else [*call(parser), "--no-such-option"]
    with pytest.raises(SystemExit) as ended:
        module.main(wrong)
    said = capsys.readouterr()
    assert (
        ended.value.code == 2 and not said.out and re.search("folder is a directory|unrecognized arguments", said.err)
    )

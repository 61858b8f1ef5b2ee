"""What the pages tell a reader to type exists: commands, options, recipe keys, make targets, paths."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from flashslm.cli.app import app
from flashslm.config import RunConfig
from flashslm.config.experiment import ExperimentRecipe
from flashslm.config.file import load_as

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMAND = re.compile(r"(?:\.venv/bin/)?flashslm (?P<rest>.+)")
CHOICE = re.compile(r"\w+(?: [A-Z]+)?(?:\|\w+(?: [A-Z]+)?)+")  # list|show ID|cancel ID
PATH = re.compile(r"`((?:benchmarks|components|configs|docs|images|manifests|pipelines|src|tests)/[\w./-]+)`")


def blocks(text: str, language: str = "") -> Iterator[str]:
    """Fenced blocks of a language, and without one also the indented ones."""
    for fence in re.finditer(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if fence[1] == language:
            yield fence[2]
    if not language:
        yield "\n".join(re.findall(r"^    (.+)$", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S), re.MULTILINE))


def in_blocks(text: str) -> Iterator[str]:
    """Whole commands: lines that go on are joined, comments left out."""
    for block in blocks(text):
        for line in block.replace("\\\n", " ").splitlines():
            if found := COMMAND.fullmatch(line.strip()):
                yield found["rest"].partition("  #")[0].strip()


def in_sentences(text: str) -> Iterator[str]:
    """Commands that a sentence names, perhaps without all they need."""
    for span in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        if found := COMMAND.fullmatch(span):
            yield found["rest"]


def spelt_out(command: str) -> Iterator[list[str]]:
    """Arguments of each alternative, with everything that is optional."""
    choice = CHOICE.search(command)
    for text in choice[0].split("|") if choice else [""]:
        chosen = command.replace(choice[0], text) if choice else command
        yield shlex.split(chosen.replace("[", "").replace("]", ""))


def check(arguments: list[str], whole: bool) -> None:
    """Parse as the command line does. Raises what it raises; a part of a command may lack what is required."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("flashslm", arguments[:1], resilient_parsing=True)
    while hasattr(command, "commands"):
        if not arguments or arguments[0] == "--help":
            return
        name, *arguments = arguments
        assert name in command.commands, f"'{name}' is not a command: {', '.join(command.commands)}"
        command = command.commands[name]
    try:
        context = command.make_context("flashslm", arguments)
    except Exception as error:
        if whole or type(error).__name__ != "MissingParameter":
            raise
        return
    config = context.params.get("config")
    if config and (ROOT / config).is_file():
        schema = ExperimentRecipe if "experiments" in Path(config).parts else RunConfig
        load_as(schema, ROOT / config, context.params.get("overrides"))


def found_commands() -> Iterator[Any]:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for whole, commands in ((True, in_blocks(text)), (False, in_sentences(text))):
            for command in commands:
                for arguments in spelt_out(command):
                    yield pytest.param(arguments, whole, id=f"{page.stem}: {' '.join(arguments)}")


@pytest.mark.parametrize(("arguments", "whole"), found_commands())
def test_commands_exist_as_they_are_written(arguments: list[str], whole: bool) -> None:
    check(arguments, whole)


def test_the_commands_are_found() -> None:
    names = {argument for case in found_commands() for argument in case.values[0]}
    assert {"submit", "show", "cancel", "pause", "resume", "promote", "rollback", "--wait", "--kubernetes"} <= names


@pytest.mark.parametrize(
    ("command", "whole"),
    [
        ("submit --config F", True),
        ("submit --hots H", False),
        ("runs watch", False),
        ("schedule create NAME --config F --corn x", False),
        ("run --config configs/smoke.yaml training.stepz=3", True),
        ("run --config configs/smoke.yaml a b=c", True),
    ],
)
def test_what_does_not_exist_is_seen(command: str, whole: bool) -> None:
    with pytest.raises(Exception, match=r"[Mm]issing|[Nn]o such option|is not a command|stepz|override"):
        check(shlex.split(command), whole)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_recipes_targets_and_paths_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for block in blocks(text, "yaml"):
        RunConfig.model_validate({"name": "x"} | yaml.safe_load(block))
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"(?:`|^ *|=1 |&& )make ([\w-]+)", text, re.MULTILINE)) <= targets
    named = {*PATH.findall(text), *re.findall(r"(?<![\w/])(?:configs|manifests)/[\w./-]+", text)}
    assert [path for path in sorted(named) if not (ROOT / path.rstrip("./")).exists()] == []

"""The part of the harness's index that some names need is what the whole index says of them."""

from pathlib import Path
from typing import Any

import pytest
from lm_eval.tasks._index import TaskIndex

from flashslm.evaluation import task_index
from flashslm.evaluation.task_index import index_of, whole_index

FILES = {
    "a/rivers.yaml": "task: rivers\ninclude: _template\n",
    "a/_template": "tag: water\ninclude:\n  - ../shared/_base\n  - ../shared/_more.yaml\n",
    "a/seas.yaml": "include: [_template]\ntask: seas\n",
    "a/rivers_de.yaml": "task: rivers_de\n",
    "a/group.yaml": "group: wet\ntask: [water, {task: lakes, num_fewshot: 2}, {group: dry, task: [dunes]}]\n",
    "b/lakes.yaml": "task: 'lakes'\ntag: [still, water]\n",
    "b/lakes_too.yaml": "task: lakes\ndescription: never taken, the first counts\n",
    "b/dry.yaml": "group: dry\ntask:\n- dunes\n",
    "b/dunes.yaml": "task: dunes\n",
    "b/inline.yaml": "group: inline\ntask: [{task: made_here, dataset_path: json}, dunes]\n",
    "c/broken.yaml": "task: rivers\n  - : {\n",
    "c/ring.yaml": "include: ring.yaml\ntask: ring of rivers\n",
    "c/other.yaml": "task: other\n",
    "shared/_base": "dataset_path: json\n",
    "shared/_more.yaml": "tag: blue\n",
}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("names", "needed"),
    [
        (["rivers"], {"rivers"}),
        (["seas", "lakes"], {"seas", "lakes"}),
        (["water"], {"water", "rivers", "seas", "lakes"}),
        (["still"], {"still", "lakes"}),
        (["wet"], {"wet", "water", "rivers", "seas", "lakes", "dry", "dunes"}),
    ],
)
def test_entries_are_those_of_the_whole_index(directory: Path, names: list[str], needed: set[str]) -> None:
    whole: dict[str, Any] = TaskIndex.build([directory])
    assert needed <= whole.keys()
    found = index_of(names, directory)
    assert {name: found[name] for name in needed} == {name: whole[name] for name in needed}
    assert "other" not in found


def test_an_inherited_tag_is_found(directory: Path) -> None:
    (directory / "a" / "_template").write_text("include:\n  - ../shared/_base\n  - ../shared/_more.yaml\n")
    assert index_of(["blue"], directory)["blue"].tags == {"rivers", "seas"}


def test_only_files_that_mention_a_name_are_parsed(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    load = task_index.load_yaml

    def count(path: Path, **options: Any) -> Any:
        parsed.append(path.name)
        return load(path, **options)

    monkeypatch.setattr(task_index, "load_yaml", count)
    index_of(["rivers"], directory)
    assert sorted(parsed) == ["broken.yaml", "ring.yaml", "rivers.yaml"]


@pytest.mark.parametrize("names", [["rivers", "unknown"], ["inline"]])
def test_what_is_not_found_takes_the_whole_index(directory: Path, names: list[str]) -> None:
    assert index_of(names, directory) == whole_index(directory)
    assert "other" in whole_index(directory)

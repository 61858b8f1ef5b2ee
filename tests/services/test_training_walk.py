"""How many files a reader enters who follows a recipe's training section from the command to the step loop.

The walk is measured: in one `flashslm pretrain` in this process every call of a function of the package is watched,
from the command's function to the first step. A file is on the walk if one of its functions has the section
in hand and passes it on: it is on the call stack at that step, or it has returned the section (as a validator of it
does). In hand are the section itself, the recipe, a step's JSON, the TrainSpec, and an object of the package that has
one of them among its attributes.

Not on the walk are files whose functions look at the section and keep it to themselves, such as those that check the
recipe, keep secrets out of it, log its values or build the optimizer, and the CARRIERS, which know nothing of this
section: the parser of YAML, the base class of sections, the store of long texts, and the reader and the format of
artifact files, which carry sections by name, hand on what they get, as a library would. All of them are counted too, so
that nothing is moved out of sight.

By this measure the walk had 11 files when Order and TrainingJob handed
each other's fields on. A count by hand that also took in what the trainer calls had come to 26.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import yaml

import flashslm
from flashslm.cli import steps
from flashslm.config import RunConfig, TrainingConfig
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.training.spec import TrainSpec
from flashslm.training.step import TrainStep
from tests.services.pretraining import write_inputs
from tests.unit.training import tiny

pytestmark = pytest.mark.services
PACKAGE = Path(flashslm.__file__).parent
CARRIERS = {
    "config/recipe_text.py",
    "config/section.py",
    "infra/storage/long_sections.py",
    "infra/storage/tree.py",
    "steps/inputs.py",
}
WALK_LIMIT = 8
SEEN_LIMIT = 23


class FirstStep(BaseException):
    """The step loop has been reached: nothing more is trained."""


@dataclass
class Walk:
    """Files of the package, relative to it, and the functions for which they are here."""

    passed_on: dict[str, set[str]] = field(default_factory=dict)
    seen: dict[str, set[str]] = field(default_factory=dict)

    def watch(self, frame: FrameType, event: str, value: Any) -> None:
        """For sys.setprofile: arguments at a call, the result at a return."""
        if event == "call" and any(in_hand(argument) for argument in frame.f_locals.values()):
            note(self.seen, frame)
        elif event == "return" and in_hand(value):
            note(self.seen, frame)
            note(self.passed_on, frame)

    def stop(self, *_: Any, **__: Any) -> None:
        """In place of the first step."""
        sys.setprofile(None)
        frame: FrameType | None = sys._getframe()
        while frame:
            if any(in_hand(local) for local in frame.f_locals.values()):
                note(self.seen, frame)
                note(self.passed_on, frame)
            frame = frame.f_back
        raise FirstStep


def note(files: dict[str, set[str]], frame: FrameType) -> None:
    file = Path(frame.f_code.co_filename)
    if file.is_relative_to(PACKAGE) and frame.f_code.co_name != "<module>":
        files.setdefault(file.relative_to(PACKAGE).as_posix(), set()).add(frame.f_code.co_name)


def in_hand(value: Any, depth: int = 2) -> bool:
    if isinstance(value, RunConfig | TrainingConfig | TrainSpec):
        return True
    if isinstance(value, str):
        return '"training": {' in value
    if isinstance(value, dict):
        return isinstance(value.get("training"), dict)
    if depth == 0 or not type(value).__module__.startswith(flashslm.__name__):
        return False
    return any(in_hand(attribute, depth - 1) for attribute in getattr(value, "__dict__", {}).values())


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Walk]:
    walk = Walk()
    monkeypatch.setattr(TrainStep, "run", walk.stop)
    before = sys.getprofile()
    sys.setprofile(walk.watch)
    try:
        yield walk
    except FirstStep:
        pass
    finally:
        sys.setprofile(before)


def test_the_section_passes_through_few_files(
    platform_env: Settings, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "cache"))
    artifacts = tmp_path / "artifacts"
    (artifacts / "walk").mkdir(parents=True)
    write_inputs(store, artifacts / "walk")
    recipe = tmp_path / "recipe.yaml"
    training = tiny.config(processes=1, weight_norm=("on",)).model_dump(mode="json")
    recipe.write_text(yaml.safe_dump({"name": "walk", "training": training}))
    with watched(monkeypatch) as walk:
        steps.command(steps.pretrain)(recipe, ["training.steps=9"], artifacts, tmp_path / "home", as_json=True)
    assert {"cli/steps.py", "config/file.py", "steps/run.py", "training/trainer.py"} <= walk.passed_on.keys()
    assert {"training/optimizer.py", "infra/tracking/mlflow_runs.py"} <= walk.seen.keys() - walk.passed_on.keys()
    assert walk.seen.keys() >= CARRIERS
    walked = walk.passed_on.keys() - CARRIERS
    assert len(walked) <= WALK_LIMIT, walked
    assert len(walk.seen) <= SEEN_LIMIT, walk.seen

"""The command that a schedule starts, and the promotion hook that it is given, or refused."""

import copy
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from flashslm.config import PromotionHook
from flashslm.config.file import load
from flashslm.launch.schedule import kept_hook
from flashslm.launch.schedule import scheduler as scheduler_module
from flashslm.launch.schedule.scheduler import Scheduler, launch_in
from tests.unit.launch.schedule.world import RECIPE, World, at


def test_runs_are_commands_with_recipe_and_log_below_home(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[Any] = []
    monkeypatch.setattr(scheduler_module.subprocess, "Popen", lambda command, **_: commands.append(command))
    schedule = world.add()
    _, log = launch_in(tmp_path)(schedule, at("2026-07-01 02:00"))
    assert log == tmp_path / "schedules" / "nightly" / "20260701T000000Z" / "run.log" and log.is_file()
    recipe = log.parent / "recipe.yaml"
    assert commands[0][1:] == [
        *("-m", "flashslm", "run", "--pipeline", "retraining"),
        *("--config", str(recipe), "--home", str(tmp_path)),
    ]
    assert load(recipe) == schedule.config


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, str]]]:
    """Commands that `launch_in` starts, with their environment."""
    found: list[tuple[Any, dict[str, str]]] = []
    monkeypatch.setattr(scheduler_module.subprocess, "Popen", lambda command, env, **_: found.append((command, env)))
    return found


HOOKS = [
    {"command": ["sh", "-c", "touch /tmp/planted"]},
    {"url": "http://127.0.0.1:1/collect"},
    {"url": "**********"},
]


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_that_the_store_names_is_never_called(
    hook: dict[str, Any], world: World, tmp_path: Path, started: list[Any]
) -> None:
    recipe = copy.deepcopy(RECIPE) | {"gate": RECIPE["gate"] | {"promotion_hook": hook}}
    world.add("planted", recipe=recipe)
    world.add("apart", cron="0 3 * * *")
    scheduler = Scheduler(world.schedules, launch_in(tmp_path), world.said.append, now=lambda: world.now_s)
    world.now_s = at("2026-07-01 02:00")
    scheduler.tick()
    assert started == [] and list(tmp_path.rglob("*.yaml")) == []
    last = world.find("planted").last
    assert last is not None and last.state == "FAILURE" and "names a promotion hook" in last.detail


@pytest.mark.parametrize(
    "hook",
    [PromotionHook(command=("./deploy.sh", "production")), PromotionHook(url="https://deploy.test/x?token=hidden")],
)
def test_a_hook_is_kept_in_the_home_and_only_its_digest_in_the_store(
    hook: PromotionHook, world: World, tmp_path: Path, started: list[Any]
) -> None:
    digest = kept_hook.keep(tmp_path, "nightly", hook)
    schedule = world.add(hook_sha256=digest)
    assert not any(part in str(world.store.objects) for part in ("deploy.", "hidden", "production"))
    (file,) = (tmp_path / "schedules" / "nightly").glob("hook-*.json")
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    _, log = launch_in(tmp_path)(schedule, at("2026-07-01 02:00"))
    ((command, env),) = started
    written = (log.parent / "recipe.yaml").read_text()
    assert "hidden" not in written and "hidden" not in " ".join(command)
    assert env.get("FLASHSLM_HOOK_URL", "") == hook.url.get_secret_value()
    assert yaml.safe_load(written)["gate"]["promotion_hook"]["command"] == list(hook.command)
    kept_hook.forget(tmp_path, "nightly")
    with pytest.raises(ValueError, match="its promotion hook is not in"):
        launch_in(tmp_path)(schedule, at("2026-07-01 02:00"))


def test_a_hook_of_another_home_or_changed_by_another_is_not_called(
    world: World, tmp_path: Path, started: list[Any]
) -> None:
    digest = kept_hook.keep(tmp_path / "mine", "nightly", PromotionHook(command=("true",)))
    schedule = world.add(hook_sha256=digest)
    with pytest.raises(ValueError, match="its promotion hook is not in"):
        launch_in(tmp_path / "other")(schedule, at("2026-07-01 02:00"))
    (file,) = (tmp_path / "mine" / "schedules" / "nightly").glob("hook-*.json")
    file.write_text(file.read_text().replace("true", "evil"))
    with pytest.raises(ValueError, match="was changed there"):
        launch_in(tmp_path / "mine")(schedule, at("2026-07-01 02:00"))
    assert started == [] and kept_hook.keep(tmp_path, "nightly", PromotionHook()) == ""

"""The directory of a run below `runs/`: no other run's, whatever home it uses."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from flashslm.config import RunConfig
from flashslm.launch.local import run_directory
from flashslm.launch.local.run_directory import make_run_dir, point_latest

CONFIG = RunConfig(name="toy")


def test_runs_of_the_same_second_do_not_meet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_directory.time, "strftime", lambda pattern: "20261127-070000-")
    monkeypatch.setattr(run_directory, "environment", dict)
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: make_run_dir(tmp_path / "runs", CONFIG), range(8)))
    first = "20261127-070000-toy"
    assert {path.name for path in made} == {first, *(f"{first}-{n}" for n in range(2, 9))}
    assert all((path / "config.yaml").is_file() for path in made)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda path: point_latest(tmp_path / "runs", path), made))
    assert (tmp_path / "runs" / "latest").resolve() in made
    assert sorted(p.name for p in (tmp_path / "runs").iterdir() if p.name.startswith(".")) == []


def test_a_directory_named_latest_stops_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "latest").mkdir()
    (tmp_path / "run").mkdir()
    point_latest(tmp_path, tmp_path / "run")
    assert "latest does not lead to" in caplog.text and sorted(p.name for p in tmp_path.iterdir()) == ["latest", "run"]

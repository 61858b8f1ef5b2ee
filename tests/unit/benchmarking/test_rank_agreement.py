"""benchmarks/rank_agreement.py: scores from curves that cross, what is left out, and its record."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import rank_agreement


def cell(model: str, steps: int, test: float, seed: int = 0, failed: str = "", **validation: float) -> dict[str, Any]:
    losses = {name.removeprefix("at_"): value for name, value in validation.items()}
    metrics = {} if failed else {"loss_nats": test}
    facts = {"model": model, "steps": steps, "seed": seed, "failed": failed}
    return facts | {"metrics": metrics, "validation_losses_nats": losses}


def record(*cells: dict[str, Any]) -> dict[str, Any]:
    facts = {"device": "GPU", "fingerprint": {}, "versions": {}, "date": "2026-01-01", "commit": "c0ffee"}
    return facts | {"cells": list(cells)}


# Design i is behind by i at 240 steps, but falls by 3 i: further on, it is ahead.
SHORT = record(*[cell(f"m{i}", 240, 0.0, at_120=5.0 + 4 * i, at_240=5.0 + i) for i in range(6)])
LONG = record(
    *[
        cell(f"m{i}", steps, 4.0 - i / 10 if steps == 960 else i, seed=s)
        for i in range(6)
        for steps in (240, 960)
        for s in (0, 1)
    ]
)


def values(short: dict[str, Any], truth: dict[str, float]) -> dict[tuple[int, float], float]:
    return {
        (row["steps"], row["slope"]): row["value"] for row in rank_agreement.agreements(short, truth, (0, 0.25, 0.5))
    }


def test_a_slope_ranks_curves_that_will_cross() -> None:
    truth = rank_agreement.long_losses(LONG)
    assert truth["m2"] == pytest.approx(3.8)  # of the longest budget, over both seeds
    found = values(SHORT, truth)
    assert found[240, 0] == found[240, 0.25] == -1.0 and found[240, 0.5] == 1.0
    assert {steps for steps, slope in found if slope} == {240}  # at 120 steps nothing is known of 60


def test_the_mean_over_seeds_is_ranked_and_failures_are_left_out() -> None:
    truth = {f"m{i}": float(i) for i in range(6)}
    good = [
        cell(f"m{i}", 100, 0.0, seed, at_100=i + (8 - 2 * i) * noise)
        for i in range(6)
        for seed, noise in ((0, 1), (1, -1))
    ]
    assert values(record(*good), truth) == {(100, 0.0): 1.0}
    assert not values(record(*[c for c in good if c["model"] in ("m0", "m1", "m2", "m3")]), truth)
    broken = [cell(f"m{i}", 100, 0.0, 2, failed="loss is nan") for i in range(6)]
    assert values(record(*good, *broken), truth) == {(100, 0.0): 1.0}


def test_the_record_names_its_sources(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, content in (("short.json", SHORT), ("long.json", LONG | {"commit": "beef"})):
        (tmp_path / name).write_text(json.dumps(content))
    options = ["--long", str(tmp_path / "long.json"), "--short", str(tmp_path / "short.json")]
    assert rank_agreement.main([*options, "--slopes", "0.5", "--output", str(tmp_path / "out.json")]) == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["commit"], written["long"], written["rankings"][-1]["value"]) == ("beef; c0ffee", "long.json", 1.0)
    assert "short.json: 240 steps, slope 0.5: 1.000 (1.000 to 1.000)" in capsys.readouterr().out


def test_wrong_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(SystemExit):
        rank_agreement.main(["--long", str(tmp_path / "a.json"), "--short", str(tmp_path / "a.json")])
    assert "a.json' is not a record of that benchmark: it has no cells" in capsys.readouterr().err
    (tmp_path / "few.json").write_text(json.dumps(record(cell("m0", 960, 3.0))))
    few = str(tmp_path / "few.json")
    assert rank_agreement.main(["--long", few, "--short", few]) == 2
    assert "fewer than 5 designs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        rank_agreement.main(["--long", few, "--short", few, few])
    assert "different file names" in capsys.readouterr().err

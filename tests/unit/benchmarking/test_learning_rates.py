"""benchmarks/learning_rates.py: the optimum of known curves, and a sweep of tiny models that goes on."""

import json
import math
from pathlib import Path

import pytest

from benchmarks import learning_rates


def bowl(rate: float, optimum: float) -> float:
    return 2.0 + 0.3 * (math.log(rate) - math.log(optimum)) ** 2


@pytest.mark.parametrize("at", [0.0013, 0.002, 0.0031])
def test_the_optimum_of_a_parabola_over_the_logarithm_is_found(at: float) -> None:
    losses = {rate: bowl(rate, at) for rate in (0.0005, 0.001, 0.002, 0.004, 0.008)}
    assert learning_rates.optimum(losses) == pytest.approx(at)


def test_an_optimum_at_the_edge_is_not_made_up() -> None:
    assert learning_rates.optimum({rate: bowl(rate, 0.1) for rate in (0.001, 0.002, 0.004)}) is None
    assert learning_rates.optimum({0.001: 2.0}) is None


def test_each_width_has_its_best_rate_and_what_the_recipes_costs() -> None:
    rates = (0.001, 0.002, 0.004)
    trainings = [
        {"weight_norm": "off", "width": width, "rate": rate, "validation_loss_nats": bowl(rate, 1.0 / width)}
        for width in (256, 512, 1000)
        for rate in rates
    ]
    trainings.append({"weight_norm": "on", "width": 256, "rate": 0.001, "validation_loss_nats": None})
    small, middle, large = learning_rates.best_rates(trainings, 0.002)
    assert (small["best_rate"], middle["best_rate"], large["best_rate"]) == (0.004, 0.002, 0.001)
    assert middle["optimum_rate"] == pytest.approx(1 / 512) and large["optimum_rate"] is None
    assert middle["excess_nats_at_the_recipes_rate"] == 0.0
    assert small["excess_nats_at_the_recipes_rate"] == pytest.approx(bowl(0.002, 1 / 256) - bowl(0.004, 1 / 256))


RECIPE = """
name: sweep
data: {max_bytes: 300_000, vocab_size: 300, tokenizer_bytes: 50_000, validation_fraction: 0.1, test_fraction: 0.1}
model: {head_dim: 8, kv_group: 2, mamba_state: 8, mamba_head_dim: 8, num_meta_tokens: 2, max_position_embeddings: 64}
kernels: {default: torch}
profiling: {device: cpu}
search: {steps: 6, batch_size: 2, sequence_length: 16, validation_tokens: 64, learning_rate: 1.0e-2}
"""


def test_a_sweep_goes_on_where_it_was_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    recipe, output = tmp_path / "sweep.yaml", tmp_path / "record.json"
    recipe.write_text(RECIPE)
    sweep = ["--directory", str(tmp_path), "--config", str(recipe), "--output", str(output), "--operators", "DF"]
    assert learning_rates.main([*sweep, "--widths", "16", "--rates", "0.001", "0.01", "--weight-norm", "off"]) == 0
    first = json.loads(output.read_text())
    assert [(row["width"], row["rate"]) for row in first["trainings"]] == [(16, 0.001), (16, 0.01)]
    assert first["commit"] == "0123456789abcdef" and first["best"][0]["best_rate"] in (0.001, 0.01)
    assert learning_rates.main([*sweep, "--widths", "16", "32", "--rates", "0.001", "0.01"]) == 0
    whole = json.loads(output.read_text())
    assert whole["trainings"][:2] == first["trainings"] and len(whole["trainings"]) == 8
    assert {(best["weight_norm"], best["width"]) for best in whole["best"]} == {
        (variant, width) for variant in ("off", "on") for width in (16, 32)
    }
    assert "trainings" not in json.loads(capsys.readouterr().out.splitlines()[-1])
    with pytest.raises(SystemExit):
        learning_rates.main([*sweep[:-1], "MF", "--widths", "16"])
    assert "the record of another sweep (operators)" in capsys.readouterr().err


def test_a_sweep_that_was_cut_off_says_so_although_its_record_has_other_trainings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe, output = tmp_path / "sweep.yaml", tmp_path / "record.json"
    recipe.write_text(RECIPE)
    sweep = ["--directory", str(tmp_path), "--config", str(recipe), "--output", str(output), "--operators", "DF"]
    sweep += ["--widths", "16", "--weight-norm", "off"]
    assert learning_rates.main([*sweep, "--rates", "0.001"]) == 0
    assert learning_rates.main([*sweep, "--rates", "0.002", "--max-minutes", "0"]) == learning_rates.CUT_OFF
    assert len(json.loads(output.read_text())["trainings"]) == 1


def test_another_recipe_in_the_directory_has_its_own_text(tmp_path: Path) -> None:
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text(RECIPE)
    sweep = ["--directory", str(tmp_path), "--config", str(recipe), "--widths", "16", "--weight-norm", "off"]
    for size in (300, 310):
        again = [*sweep, "--output", str(tmp_path / f"{size}.json"), "--rates", "0.001", "--operators", "DF"]
        assert learning_rates.main([*again, "--set", f"data.vocab_size={size}"]) == 0
    prepared = [json.loads(file.read_text())["vocab_size"] for file in tmp_path.glob("data-*/dataset.json")]
    assert sorted(prepared) == [300, 310]


def test_a_sweep_normalises_what_the_recipe_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text(RECIPE)
    sweep = ["--directory", str(tmp_path), "--config", str(recipe), "--operators", "DF", "--widths", "16"]
    for name, axes in {"all": "{}", "some": "{D.o_proj: none, F.down_proj: none}"}.items():
        given = ["--rates", "0.01", "--output", str(tmp_path / name), "--set", f"training.weight_norm_axes={axes}"]
        assert learning_rates.main([*sweep, *given]) == 0
    rows = [json.loads((tmp_path / name).read_text())["trainings"] for name in ("all", "some")]
    (off, on), (off_again, on_some) = ([row["validation_loss_nats"] for row in two] for two in rows)
    assert off == off_again and on != on_some

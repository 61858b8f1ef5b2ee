"""benchmarks/recall_filter.py: signs of rankings, the record that is ranked against, a run on tiny models."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from benchmarks import recall_filter
from flashslm.models.architecture import parse_operators
from flashslm.models.hybrid import HybridLM
from flashslm.search.recall_tasks import TASKS
from flashslm.search.space import parse_design
from tests.unit.benchmarking.test_learning_rates import RECIPE
from tests.unit.training.tiny import architecture

EXPERIMENT = Path(__file__).parents[3] / "configs" / "experiments" / "proxy-quality.yaml"


def design(recall: float, loss_nats: float, **against: float) -> dict[str, Any]:
    long = {"loss_nats": loss_nats, "mqar": 0.0, recall_filter.GAIN: recall}
    return {"recall": [{"by_task": {"x": recall}}], "short": long, "long": long, "against": against}


def test_agreement_is_one_whichever_way_a_measure_points() -> None:
    designs = {str(i): design(recall=i / 10, loss_nats=4.0 - i, earlier_loss_nats=float(i)) for i in range(6)}
    found = {(row["of"], row["with"]): row["value"] for row in recall_filter.rankings(designs, [60])}
    assert found.pop(("recall_accuracy after 60 steps", "against earlier_loss_nats")) == -1.0
    assert found.pop(("short loss_nats", "against earlier_loss_nats")) == -1.0
    assert len(found) == 4 and set(found.values()) == {1.0}, "a measure that is the same for all ranks nothing"


def test_the_usual_designs_are_the_experiments_with_fewer_repeats() -> None:
    experiment = yaml.safe_load(EXPERIMENT.read_text(encoding="utf-8"))["experiment"]["models"]
    designs = dict(text.split("=") for text in recall_filter.DESIGNS)
    assert designs.keys() == experiment.keys()
    for name, notation in designs.items():
        operators, longer = parse_design(notation).operators, parse_operators(experiment[name]["operators"])
        assert longer.startswith(operators[:4]) and {*operators} == {*longer}


def test_only_budgets_that_all_models_have_are_ranked_against(tmp_path: Path) -> None:
    cells = [("a", 75, 3.0), ("b", 75, 4.0), ("a", 150, 2.0)]
    means = [{"model": m, "steps": s, "metrics": {"loss_nats": {"mean": x}}} for m, s, x in cells]
    (tmp_path / "record.json").write_text(json.dumps({"means": means}))
    found = recall_filter.losses_of(tmp_path / "record.json")
    assert found == {"a": {"75 steps loss_nats": 3.0}, "b": {"75 steps loss_nats": 4.0}}


class Copying(HybridLM):
    """Repeats the token of `size` places ago, once there is one."""

    size = 4

    def forward(self, tokens_BT: torch.Tensor, documents_BT: torch.Tensor | None = None) -> torch.Tensor:
        earlier = tokens_BT.roll(self.size - 1, dims=1)
        hidden = torch.nn.functional.one_hot(earlier, self.architecture.vocab_size).float()
        hidden[:, : self.size - 1] = 0.0
        return hidden

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return 20.0 * hidden


def test_a_model_that_copies_gains_by_the_second_reading() -> None:
    model = Copying(architecture("DF"))
    texts = torch.randint(model.architecture.vocab_size, (recall_filter.TEXTS * model.size,))
    assert recall_filter.second_reading_gain_nats(model, texts) > 2.0


def test_a_run_records_every_design_and_what_ranks_like_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    recipe, output = tmp_path / "sweep.yaml", tmp_path / "record.json"
    recipe.write_text(RECIPE)
    run = ["--directory", str(tmp_path), "--config", str(recipe), "--output", str(output), "--width", "16"]
    run += ["--designs", "d=(DF)x2", "a=AF", "--recall-steps", "2", "--longer", "2"]
    assert recall_filter.main([*run, "--set", "search.recall_length=16"]) == 0
    record = json.loads(output.read_text())
    assert record["commit"] == "0123456789abcdef" and list(record["designs"]) == ["d", "a"]
    found = record["designs"]["d"]
    assert found["notation"] == "(DF)x2" and found["recall"][0]["by_task"].keys() == TASKS.keys()
    assert found["short"]["loss_nats"] > found["long"]["loss_nats"] and found["against"] == {}
    pairs = {(row["of"], row["with"]) for row in record["rankings"]}
    assert ("short loss_nats", "long loss_nats") in pairs
    assert json.loads(capsys.readouterr().out)["rankings"] == record["rankings"]

from pathlib import Path

import pytest
import torch

from flashslm.config import RunConfig, from_step_json
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.steps.evaluate import evaluate_model, for_evaluation, precision
from tests.unit.data.corpora import make_texts, prepare
from tests.unit.training.tiny import SIZES, VOCAB


@pytest.mark.parametrize(
    ("device", "exported", "expected"),
    [("cpu", "bfloat16", "float32"), ("cuda", "bfloat16", "bfloat16"), ("cuda", "float32", "float32")],
)
def test_precision_is_the_export_s_on_a_gpu(device: str, exported: str, expected: str) -> None:
    recipe = RunConfig.model_validate({"name": "x", "export": {"dtype": exported}})
    assert precision(device, recipe) == expected


@pytest.mark.parametrize("step", ["evaluate", "compare_with_champion"])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_step_that_evaluates_declares_what_decides_its_precision(step: str, device: str) -> None:
    recipe = RunConfig.model_validate({"name": "x", "export": {"dtype": "bfloat16"}})
    declared = from_step_json(step, recipe.for_step(step))
    assert precision(device, declared) == precision(device, recipe)


def test_an_export_in_bf16_is_evaluated_in_fp32_on_a_cpu() -> None:
    model = HybridLM.build(build_architecture("DFMF", 32, SIZES, VOCAB), dtype=torch.bfloat16)
    values = {name: p.float() for name, p in model.named_parameters()}
    ready = for_evaluation(model.train(), RunConfig(name="x"))
    assert not ready.training
    for name, parameter in ready.named_parameters():
        assert parameter.dtype == torch.float32 and torch.equal(parameter, values[name])


def test_an_evaluation_has_every_recall_task_at_every_length(tmp_path: Path) -> None:
    prepare(tmp_path / "d", make_texts(60))
    architecture = build_architecture("DFMFAF", 32, SIZES, 300)
    evaluation = {
        "sequence_length": 32,
        "max_tokens": 200,
        "needle_lengths": [40],
        "needle_samples": 2,
        "recall_tasks": ["single_1", "single_2", "single_3", "mqar"],
        "recall_lengths": [512, 530],
        "recall_samples": 3,
    }
    recipe = RunConfig.model_validate({"name": "x", "evaluation": evaluation})
    found = evaluate_model(HybridLM.build(architecture, seed=0).eval(), tmp_path / "d", recipe)
    rows = found.results["recall"]
    assert [(row["task"], row["length"]) for row in rows] == [
        (task, length) for task in evaluation["recall_tasks"] for length in (512, 530)
    ]
    for row in rows:
        name = f"test/recall_{row['task']}_accuracy_{row['length']}"
        assert found.results[name] == row["accuracy"] == found.items[name].value
        assert len(row["by_depth"]) == (8 if row["task"] == "mqar" else 3)
    assert found.results["dtype"] == "float32"

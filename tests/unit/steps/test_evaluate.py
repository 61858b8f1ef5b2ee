from pathlib import Path

import pytest
import torch

from flashslm.config import RunConfig, from_step_json
from flashslm.data.loader import TokenLoader
from flashslm.inference.int8_model import round_to_int8
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.steps.evaluate import evaluate_model, evaluate_served, for_evaluation, perplexity_text, precision
from tests.unit.data.corpora import make_texts, prepare
from tests.unit.evaluation.choice_task import write_choice_task
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


SMALL = {"sequence_length": 32, "needle_lengths": [40], "needle_samples": 2}


def trained(dataset: Path) -> HybridLM:
    """Of an odd vocabulary and a width that does not divide into whole loads of a kernel's lanes."""
    model = HybridLM.build(build_architecture("DFMFAF", 40, SIZES, 307), seed=0)
    loader = TokenLoader(dataset, "train", 32, 16, seed=0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):
        batch = loader.batch(step)
        optimizer.zero_grad()
        model.loss(batch.tokens_BT, batch.targets_BT).backward()
        optimizer.step()
    return model.eval()


def test_weights_of_8_bits_are_evaluated_as_they_are_served_beside_what_they_were(tmp_path: Path) -> None:
    prepare(tmp_path / "d", make_texts(120))
    model, recipe = trained(tmp_path / "d"), RunConfig.model_validate({"name": "x", "evaluation": SMALL})
    before = evaluate_served(model, "full", tmp_path / "d", recipe)
    assert before == evaluate_model(model, tmp_path / "d", recipe)
    assert "test/full_perplexity" not in before.results | before.headline()
    found = evaluate_served(model, "int8", tmp_path / "d", recipe)
    results, full = found.results, before.results["test/perplexity"]
    assert full < 60, "the model has learned something: 307 is chance"
    assert results["test/full_perplexity"] == found.headline()["test/full_perplexity"] == full
    assert results["test/perplexity"] == pytest.approx(full * (1 + results["test/rounding_loss"]))
    assert 0 < abs(results["test/rounding_loss"]) < 0.005
    assert f"(weights in 8 bits: {results['test/rounding_loss']:+.2%})" in perplexity_text(results)
    again = evaluate_model(round_to_int8(model), tmp_path / "d", recipe)
    assert again.results["test/perplexity"] == pytest.approx(results["test/perplexity"], rel=1e-6)


def test_an_evaluation_names_the_tasks_whose_text_was_not_kept_out_of_the_training(tmp_path: Path) -> None:
    prepare(tmp_path / "d", make_texts(120))
    task = str(write_choice_task(tmp_path, 4, "acc"))
    recipe = RunConfig.model_validate({"name": "x", "evaluation": SMALL | {"lm_eval_tasks": [task]}})
    model = HybridLM.build(build_architecture("DFMFAF", 32, SIZES, 300), seed=0).eval()
    assert evaluate_model(model, tmp_path / "d", recipe).results["not_decontaminated"] == [task]

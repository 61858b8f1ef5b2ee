"""The recipes of the released models say what the paper says, build their models and take a step of every stage."""

from pathlib import Path

import pytest
import torch

from flashslm.config import RunConfig, TrainingConfig
from flashslm.config.file import load
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import usual_axes
from flashslm.models.presets import preset
from flashslm.steps.recipe_checks import problems
from flashslm.training.learning_rate import learning_rate
from flashslm.training.trainer import train
from tests.unit.training import tiny

CONFIGS = Path(__file__).parents[3] / "configs"


@pytest.fixture(params=["nemotron-flash-1b", "nemotron-flash-3b"])
def recipe(request: pytest.FixtureRequest) -> RunConfig:
    return load(CONFIGS / f"{request.param}.yaml", checks=problems)


def on_meta(architecture: Architecture) -> HybridLM:
    """A model without weights: `build` would draw 3 billion of them."""
    with torch.device("meta"):
        return HybridLM(architecture)


def test_pretraining_is_the_papers(recipe: RunConfig) -> None:
    """Section 4: 4.5T tokens, batches of 2M, a cosine from 1e-3 without weight decay, the last 25B tokens at 29,000."""
    training = recipe.training
    base, last = training.batch_shapes
    assert training.tokens == pytest.approx(4.5e12, rel=1e-3) and training.weight_decay == 0
    assert [shape.tokens for shape in training.batch_shapes] == pytest.approx([2.1e6, 2.1e6], rel=0.01)
    assert (base.sequence_length, last.sequence_length) == (4096, 29_000)
    assert (training.steps - last.first_step) * last.tokens == pytest.approx(25e9, rel=1e-3)
    rates = [learning_rate(step, training) for step in range(training.warmup_steps, training.steps, 100_000)]
    assert rates[0] == 1e-3 and rates == sorted(rates, reverse=True)


def test_weight_norm_is_the_papers(recipe: RunConfig) -> None:
    """Section 3.3 and figure 6; every matrix of the released model is named."""
    said = recipe.training.weight_norm_axes
    model = on_meta(preset(recipe.name))
    assert model.unit_vectors(said) == model.unit_vectors({})
    assert said == {kind: axis for kind, axis in usual_axes().items() if kind[0] in "eDAMF"}


def test_the_model_is_the_released_one(recipe: RunConfig) -> None:
    reference = recipe.latency
    architecture = build_architecture(
        reference.reference_operators, reference.reference_width, recipe.model, vocab_size=131_072
    )
    models = on_meta(architecture), on_meta(preset(recipe.name))
    assert len({sum(parameter.numel() for parameter in model.parameters()) for model in models}) == 1
    assert reference.reference_operators in recipe.search.seed_designs


def test_every_stage_takes_a_step(recipe: RunConfig, tmp_path: Path) -> None:
    """The recipe's own section, with its sizes divided until a CPU takes them."""
    base, last = recipe.training.batch_shapes
    small = {
        "steps": 3,
        "batch_size": base.batch_size // base.micro_batch_size // 16,
        "micro_batch_size": 1,
        "sequence_length": base.sequence_length // 256,
        "stages": [{"from_step": 2, "sequence_length": last.sequence_length // 256, "batch_size": 2}],
        "warmup_steps": 1,
        "threads": 1,
        "validation_tokens": 64,
    }
    training = TrainingConfig.model_validate(recipe.training.model_dump() | small)
    outcome = train(tiny.spec(training), tiny.model(), tiny.fetching(tiny.write_dataset(tmp_path / "dataset")))
    assert outcome.tokens_seen == training.tokens and outcome.skipped_steps == 0

"""The protocol of the short runs: its schedules, and what one run says of shorter ones."""

from pathlib import Path
from typing import Any

import pytest

from flashslm.config import ScalingConfig, SearchConfig, TrainingConfig
from flashslm.training.learning_rate import learning_rate
from flashslm.training.proxy import proxy_training
from flashslm.training.spec import TrainOutcome
from flashslm.training.trainer import train
from tests.unit.training import tiny

SIZES = {"batch_size": 4, "sequence_length": 16, "learning_rate": 1e-2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("dataset"))


def family(steps: int) -> TrainingConfig:
    return proxy_training(ScalingConfig(steps=steps, **SIZES), 1, decay=False)


def candidate(steps: int) -> TrainingConfig:
    return proxy_training(SearchConfig(steps=steps, validation_tokens=128, **SIZES), 1, decay=True)


def run(dataset: Path, settings: TrainingConfig, **changes: Any) -> TrainOutcome:
    seed = changes.get("seed", 0)
    return train(tiny.spec(settings, **changes), tiny.model(seed=seed), tiny.fetching(dataset))


def test_a_stable_run_s_points_are_what_shorter_runs_reach(dataset: Path) -> None:
    """The model after 6 of 12 steps is the model after 6 of 6, once the warm-up is the same (here one step)."""
    long = run(dataset, family(12), validate_at=(6, 9, 12))
    short = run(dataset, family(6))
    losses = long.validation_losses_nats()
    assert list(losses) == [6, 9, 12] and list(short.validation_losses_nats()) == [6]
    assert losses[6] == short.validation_loss_nats
    assert losses[6] > losses[9] > losses[12] == long.validation_loss_nats
    assert long.tokens_seen == 12 * 4 * 16 and long.train_time_s > 0


def test_a_proxy_repeats_itself_and_depends_on_its_seed(dataset: Path) -> None:
    losses = [run(dataset, candidate(3), seed=seed).validation_loss_nats for seed in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_a_long_proxy_is_validated_only_where_it_is_asked(dataset: Path) -> None:
    """A thousand steps are past the 500 at which a pretraining run is validated by default."""
    for training in (family(1000), candidate(1000)):
        assert training.validate_every_steps == 1000 and training.log_every_steps == 20
    assert list(run(dataset, candidate(6), validate_at=(2,)).validation_losses_nats()) == [2, 6]


def test_schedules() -> None:
    cosine, stable = candidate(200), family(200)
    assert learning_rate(199, cosine) == pytest.approx(1e-3)
    assert learning_rate(199, stable) == learning_rate(19, stable) == 1e-2
    assert cosine.warmup_steps == 20 and candidate(5000).warmup_steps == 100
    assert (cosine.validation_tokens, stable.validation_tokens) == (128, 524_288)


def test_a_proxy_has_the_graph_setting_of_its_section() -> None:
    assert family(4).cuda_graph == "off"
    section = SearchConfig.model_validate({"cuda_graph": True})  # YAML's bare on
    assert proxy_training(section, 1, decay=True).cuda_graph == "on"

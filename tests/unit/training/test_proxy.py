from pathlib import Path

import pytest

from flashslm.training.proxy import ProxySettings, train_proxy
from flashslm.training.schedule import learning_rate
from tests.unit.training import tiny


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("dataset"))


def settings(**changes: object) -> ProxySettings:
    values: dict = {"steps": 12, "batch_size": 4, "sequence_length": 16, "learning_rate": 1e-2, "validation_batches": 2}
    return ProxySettings(**values | changes)


def test_a_stable_run_s_points_are_what_shorter_runs_reach(dataset: Path) -> None:
    """The model after 6 of 12 steps is the model after 6 of 6, once the warm-up is the same (here one step)."""
    long = train_proxy(tiny.architecture(), dataset, settings(schedule="stable", evaluate_at=(6, 9, 12)))
    short = train_proxy(tiny.architecture(), dataset, settings(schedule="stable", steps=6))
    assert long.losses_nats[6] == short.loss_nats
    assert long.losses_nats[6] > long.losses_nats[9] > long.losses_nats[12] == long.loss_nats
    assert list(long.losses_nats) == [6, 9, 12]
    assert long.tokens_seen == 12 * 4 * 16 and long.train_time_s > 0


def test_a_proxy_repeats_itself_and_depends_on_its_seed(dataset: Path) -> None:
    losses = [train_proxy(tiny.architecture(), dataset, settings(steps=3, seed=s)).loss_nats for s in (0, 0, 1)]
    assert losses[0] == losses[1] != losses[2]


def test_metrics_reach_the_caller(dataset: Path) -> None:
    rows: dict[int, dict[str, float]] = {}
    result = train_proxy(tiny.architecture("AF"), dataset, settings(steps=3), on_metrics=rows.__setitem__)
    assert list(rows) == [1, 2, 3] and rows[3]["validation_loss_nats"] == result.loss_nats


def test_schedules() -> None:
    cosine, stable = settings(steps=200).training_config(), settings(steps=200, schedule="stable").training_config()
    assert learning_rate(199, cosine) == pytest.approx(1e-3)
    assert learning_rate(199, stable) == learning_rate(19, stable) == 1e-2
    assert cosine.warmup_steps == 20


def test_evaluation_beyond_the_run_is_refused() -> None:
    with pytest.raises(ValueError, match=r"evaluate_at is \(3, 13\)"):
        settings(evaluate_at=(3, 13))

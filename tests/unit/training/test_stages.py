"""Runs whose length and batch change in mid-run."""

from pathlib import Path

import pytest
import torch

from flashslm.config import BatchShape, TrainingConfig
from flashslm.data.loader import TokenLoader
from flashslm.training.staged_loader import StagedLoader
from flashslm.training.trainer import train
from tests.unit.training import tiny

STAGES = [
    {"from_step": 3, "batch_size": 6, "micro_batch_size": 2},
    {"from_step": 5, "sequence_length": 40, "batch_size": 2, "micro_batch_size": 0},
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("dataset"))


def test_a_stage_keeps_what_it_does_not_name() -> None:
    shapes = tiny.config(stages=STAGES, micro_batch_size=2).batch_shapes
    assert shapes == (BatchShape(0, 16, 4, 2), BatchShape(3, 16, 6, 2), BatchShape(5, 40, 2, 2))
    assert tiny.config(stages=STAGES, steps=8).tokens == 3 * 64 + 2 * 96 + 3 * 80


@pytest.mark.parametrize(
    "stages, message",
    [
        ([{"from_step": 8}], r"stages begin at \[8\]: .* before steps \(8\)"),
        ([{"from_step": 4}, {"from_step": 4}], r"stages begin at \[4, 4\]"),
        ([{"from_step": 4, "micro_batch_size": 3}], r"size 3 does not divide batch_size 4 \(stage from step 4\)"),
        ([{"from_step": 4, "batch": 3}], "batch"),
    ],
    ids=["after the end", "twice", "micro-batch", "unknown key"],
)
def test_stages_that_cannot_be(stages: list[dict[str, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny.config(stages=stages)


def staged(dataset: Path, settings: TrainingConfig) -> StagedLoader:
    return StagedLoader(
        settings,
        seed=0,
        make_loader=lambda shape, seed: TokenLoader(
            dataset, "train", shape.sequence_length, shape.micro_batch_size, seed
        ),
    )


def test_micro_batches_are_numbered_through_the_stages(dataset: Path) -> None:
    loader = staged(dataset, tiny.config(stages=STAGES))
    numbers = [loader.numbers(step) for step in range(8)]
    assert [number for each in numbers for number in each] == list(range(3 * 1 + 2 * 3 + 3 * 1))
    sizes = [tuple(loader.batch(each[0]).tokens_BT.shape) for each in numbers]
    assert sizes == [(4, 16)] * 3 + [(2, 16)] * 2 + [(2, 40)] * 3


def test_without_stages_the_batches_are_the_loaders(dataset: Path) -> None:
    loader, plain = staged(dataset, tiny.config()), TokenLoader(dataset, "train", 16, 4, 0)
    assert all(torch.equal(a, b) for n in range(4) for a, b in zip(loader.batch(n), plain.batch(n), strict=True))


def test_a_later_stage_does_not_begin_with_the_first_ones_text(dataset: Path) -> None:
    loader = staged(dataset, tiny.config(stages=[{"from_step": 4}]))
    assert not torch.equal(loader.batch(0).tokens_BT, loader.batch(4).tokens_BT)


def test_a_run_in_stages_stopped_in_the_second_is_the_unstopped_one(dataset: Path, tmp_path: Path) -> None:
    spec, fetch = tiny.spec(tiny.config(stages=STAGES, checkpoint_every_steps=4)), tiny.fetching(dataset)
    whole, model = tiny.model(), tiny.model()
    expected = train(spec, whole, fetch)
    assert expected.tokens_seen == spec.training.tokens

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    store = tiny.DirectoryStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(spec, tiny.model(), fetch, store, stop)
    resumed = train(spec, model, fetch, store)
    assert resumed.resumed_from_step == 4
    assert [row["train/loss_nats"] for row in resumed.history] == [row["train/loss_nats"] for row in expected.history]
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())
    speeds = [row["tokens_per_s"] * row["step_time_ms"] / 1000 for row in expected.history]
    assert speeds == pytest.approx([64] * 3 + [96] * 2 + [80] * 3)

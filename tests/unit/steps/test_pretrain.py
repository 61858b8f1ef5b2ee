"""What a training says of settings that do nothing where it runs."""

import logging

import pytest

from flashslm.steps import pretrain
from flashslm.training.distributed import World
from tests.unit.training import tiny

SHARED = tiny.spec(tiny.config(batch_size=4, shard_processes=2, gather_dtype="bfloat16"))


@pytest.mark.parametrize(
    ("world", "named"),
    [
        (World(), ["training.shard_processes", "training.gather_dtype"]),
        (World(rank=0, size=2), ["training.gather_dtype"]),  # fp32 on a CPU
        (World(rank=1, size=2), []),  # the first rank has said it
    ],
)
def test_settings_without_effect_here_are_lines_of_the_log(
    world: World, named: list[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pretrain, "current_world", lambda: world)
    monkeypatch.setattr(pretrain, "pick_device", lambda _: "cpu")
    monkeypatch.setattr(pretrain, "new_model", lambda *_: pytest.fail("the model comes after the warning"))
    with caplog.at_level(logging.WARNING), pytest.raises(pytest.fail.Exception):
        pretrain.train_in_process(SHARED, tiny.fetching, None, None, None)
    assert sorted(line.partition(":")[0] for line in caplog.messages) == sorted(named)

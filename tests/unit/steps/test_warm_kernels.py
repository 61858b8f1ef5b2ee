"""What is compiled ahead: alone what tunes, the rest in processes. On a CPU the steps are real, and nothing tunes."""

from collections.abc import Iterator

import pytest
import torch

from flashslm.config import ModelConfig, RunConfig
from flashslm.steps import warm_kernels
from flashslm.steps.warm_kernels import WarmUp, each_layer_once, one_layer_each, tuning, warm_all

SIZES = ModelConfig(head_dim=8, kv_group=1, mamba_state=8, mamba_head_dim=8, num_meta_tokens=0)


def warm_up(operators: str, width: int, batch: int = 2) -> WarmUp:
    return one_layer_each(operators, width, SIZES, batch, 16)


def test_the_rest_runs_in_processes_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[WarmUp] = []
    ours = warm_kernels.warm
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(warm_kernels, "warm", lambda config, one: (here.append(one), ours(config, one)))
    planned = [warm_up("AF", width) for width in (16, 32, 48)]
    warmed = list(warm_all(RunConfig(name="x"), planned, workers=2))
    assert [one.width for one in here] == [32], "the others are other processes' work, whose module is not changed"
    assert {one.warm_up for one in warmed} == set(planned) and all(one.seconds > 0 for one in warmed)


def test_an_error_of_a_process_is_the_commands_own() -> None:
    wrong = WarmUp(warm_up("AF", 16).architecture, batch=2, sequence_length=-1)
    steps: Iterator[object] = warm_all(RunConfig(name="x"), [warm_up("AF", 32), wrong, warm_up("AF", 48)], workers=2)
    assert next(steps)
    with pytest.raises(RuntimeError, match="negative dimension"):
        list(steps)


def test_what_has_other_layers_widths_or_batches_stays() -> None:
    kept = [warm_up("DMAF", 16), warm_up("DMAF", 32), warm_up("GF", 16), warm_up("AF", 16, batch=4)]
    assert each_layer_once(iter([warm_up("DF", 16), *kept, warm_up("FM", 32)])) == kept


def test_widths_far_apart_tune_each_for_itself() -> None:
    found = tuning([warm_up("DMAF", width) for width in (16, 32, 64, 128, 256)] + [warm_up("GF", 64)])
    assert [(one.architecture.operators, one.width) for one in found] == [
        ("DMAF", 64),
        ("GF", 64),
        ("DMAF", 16),
        ("DMAF", 256),
    ]

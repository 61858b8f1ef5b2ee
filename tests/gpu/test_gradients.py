"""What `flashslm doctor --gpu` and every training on a GPU check, on this machine's set of versions."""

import pytest
import torch

from flashslm.ops import gradient_check
from flashslm.ops.gradient_check import (
    TOLERANCE,
    WrongGradient,
    check_gradients,
    every_operation,
    require_right_gradients,
)
from flashslm.training.trainer import train
from tests.unit.training import tiny


@pytest.mark.parametrize("operation", every_operation())
def test_an_operation_has_the_gradients_of_its_naive_form(operation):
    (error,) = check_gradients([operation])
    if error.problem and operation == "gated_delta_rule":
        pytest.skip(error.problem)
    assert error.relative <= TOLERANCE, error


def test_a_released_model_may_be_trained(tmp_path, monkeypatch):
    monkeypatch.setenv("FLASHSLM_KERNEL_CACHE", str(tmp_path))
    require_right_gradients("DFMFAF", "cuda", torch.bfloat16)
    assert {file.name for file in tmp_path.rglob("gradients/*")} >= {"delta_rule.bfloat16.json", "ssd.bfloat16.json"}


def test_training_ends_before_its_first_step_on_a_known_bad_set(tmp_path, monkeypatch):
    monkeypatch.setattr(gradient_check, "known_problems", lambda operations, facts: {"ssd": "is wrong here"})
    dataset = tiny.write_dataset(tmp_path / "dataset")
    rows = []
    with pytest.raises(WrongGradient, match=r"ssd: is wrong here .*kernels.ssd=chunked"):
        model = tiny.model("MF").to("cuda")
        train(tiny.spec(), model, tiny.fetching(dataset), on_metrics=lambda *row: rows.append(row))
    assert not rows

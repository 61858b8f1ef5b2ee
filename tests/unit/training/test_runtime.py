import gc

import pytest
import torch

from flashslm.config import TrainingConfig
from flashslm.training.runtime import gc_held, reproducible


def test_garbage_waits_until_the_steps_are_over():
    with gc_held():
        assert not gc.isenabled() and gc.get_freeze_count() > 0
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_a_collector_that_was_off_stays_off():
    gc.disable()
    try:
        with gc_held():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


@pytest.mark.parametrize("deterministic", [True, False])
def test_deterministic_algorithms_are_a_setting_and_are_put_back(deterministic):
    before = torch.are_deterministic_algorithms_enabled()
    with reproducible(0, 1, deterministic=deterministic):
        assert torch.are_deterministic_algorithms_enabled() is deterministic
    assert torch.are_deterministic_algorithms_enabled() is before


@pytest.mark.parametrize("setting, cpu, cuda", [("auto", True, False), ("on", True, True), ("off", False, False)])
def test_auto_is_deterministic_on_a_cpu_alone(setting, cpu, cuda):
    config = TrainingConfig(deterministic=setting)
    assert (config.is_deterministic("cpu"), config.is_deterministic("cuda")) == (cpu, cuda)


def test_yaml_booleans_are_taken():
    assert TrainingConfig.model_validate({"deterministic": True}).deterministic == "on"

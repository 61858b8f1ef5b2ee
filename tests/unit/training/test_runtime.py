import gc
import signal

import pytest
import torch

from flashslm.config import TrainingConfig
from flashslm.infra.process.interrupts import Terminated, stop_requested
from flashslm.infra.storage.errors import StoreUnavailable
from flashslm.training.runtime import end_as_request, gc_held, reproducible


def test_garbage_waits_until_the_steps_are_over_and_what_is_frozen_stays_so():
    gc.freeze()
    try:
        with gc_held():
            assert not gc.isenabled()
        assert gc.isenabled() and gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


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


@pytest.mark.parametrize(("asked", "ended_by"), [(False, StoreUnavailable), (True, Terminated)])
def test_a_store_that_is_away_after_sigterm_is_the_end_that_was_asked_for(
    asked: bool, ended_by: type[BaseException]
) -> None:
    with pytest.raises(ended_by), end_as_request() as stop:
        if asked:
            signal.raise_signal(signal.SIGTERM)
        assert stop.requested is asked
        raise StoreUnavailable("S3 does not answer")
    assert not stop_requested()


def test_a_request_that_comes_too_late_for_the_block_to_see_it_is_not_lost() -> None:
    with pytest.raises(Terminated) as ended, end_as_request():
        signal.raise_signal(signal.SIGTERM)
    assert ended.value.code == 143 and not stop_requested()

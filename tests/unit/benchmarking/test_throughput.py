"""The largest batch that fits, and what is timed at it."""

import json

import pytest
import torch

from flashslm.benchmarking import memory, throughput
from flashslm.config import KernelsConfig
from flashslm.models.accounting import kv_bytes_per_sequence, state_bytes
from flashslm.models.random_weights import random_model


def sequence_bytes(architecture, slots):
    return kv_bytes_per_sequence(architecture, slots, 4) + state_bytes(architecture, 4, 4)


def test_the_account_of_a_batch(make_case, architecture):
    case = make_case(context=20, new_tokens=6)
    each = sequence_bytes(architecture, 8 + 26) + 50 * (4 + 4)  # logits in fp32 and in the model's dtype
    assert throughput.cache_bytes_per_sequence(case) == sequence_bytes(architecture, 8 + 26)
    assert throughput.largest_batch(case, int(each * 7 / 0.95) + 1) == 7
    assert throughput.largest_batch(case, int(each * 7 / 0.95) - 1) == 6


def test_nothing_fits(make_case):
    with pytest.raises(ValueError, match=r"a sequence of 26 tokens takes [\d,]+ bytes and 100 are free"):
        throughput.largest_batch(make_case(), 100)


def test_the_account_is_what_an_engine_allocates(make_case, architecture):
    case = make_case(batch=3)
    model = random_model(architecture, "cpu", torch.float32)
    engine = throughput.build_engine(model, 3, case.capacity, step_down=False)
    allocated = sum(tensor.nbytes for state in engine.cache.layers for tensor in state)
    assert allocated == 3 * throughput.cache_bytes_per_sequence(case)


class Crowded:
    """An engine that more than `fits` sequences are too many for."""

    fits = 70
    tried: list[int]

    def __init__(self, model, batch, max_context):
        self.tried.append(batch)
        if batch > self.fits:
            raise torch.OutOfMemoryError("no memory")


@pytest.mark.parametrize(("fits", "tried"), [(70, [100, 90, 81, 72, 64]), (1, [4, 3, 2, 1])])
def test_a_tenth_less_until_it_fits(architecture, monkeypatch, fits, tried):
    monkeypatch.setattr(Crowded, "tried", [], raising=False)
    monkeypatch.setattr(Crowded, "fits", fits)
    monkeypatch.setattr(throughput, "DecodeEngine", Crowded)
    model = random_model(architecture, "cpu", torch.float32)
    assert isinstance(throughput.build_engine(model, tried[0], 30, step_down=True), Crowded)
    assert Crowded.tried == tried


def test_a_given_batch_that_does_not_fit_is_an_error(architecture, monkeypatch):
    monkeypatch.setattr(Crowded, "tried", [], raising=False)
    monkeypatch.setattr(throughput, "DecodeEngine", Crowded)
    with pytest.raises(torch.OutOfMemoryError):
        throughput.build_engine(random_model(architecture, "cpu", torch.float32), 100, 30, step_down=False)
    assert Crowded.tried == [100]


def test_the_largest_batch_is_measured(make_case, architecture, monkeypatch):
    case = make_case(context=112, new_tokens=8, batch=1)  # up to the model's last position
    each = sequence_bytes(architecture, 128) + 50 * 8
    monkeypatch.setattr(memory, "free_bytes", lambda device: int(5.5 * each / 0.95))
    engines = []
    build = throughput.build_engine
    monkeypatch.setattr(throughput, "build_engine", lambda *a, **k: engines.append(build(*a, **k)) or engines[0])
    result = throughput.bench_throughput(case, KernelsConfig(), largest=True)
    found = json.loads(result.model_dump_json())
    assert (found["batch"], found["context"], found["new_tokens"], found["largest"]) == (5, 120, 8, True)
    assert found["tokens_per_s"] == pytest.approx(5 * 1000 / found["tpot_ms_mean"])
    assert found["bytes_per_token"] == make_case(context=112, new_tokens=8, batch=5).bytes_per_token
    assert found["cache_bytes"] == 5 * sequence_bytes(architecture, 128)
    assert sum(found["operator_share"].values()) == pytest.approx(1)
    assert engines[0].cache.lengths_B.tolist() == [128] * 5  # every step had its own position, the last one the last
    keys = engines[0].cache.layers[4].keys
    assert 0.9 < float(keys.std()) < 1.1  # as filled, not zeros


def test_a_given_batch(make_case):
    result = throughput.bench_throughput(make_case(batch=3), KernelsConfig(), largest=False)
    assert (result.batch, result.context, result.largest) == (3, 26, False)


def test_steps_end_at_the_context():
    assert throughput.steps_ending_at(32_768, 64) == 32_704
    with pytest.raises(ValueError, match="context is 64: above the 64 steps that end there"):
        throughput.steps_ending_at(64, 64)

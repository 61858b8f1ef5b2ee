"""Steps in captured graphs run the layers they are said to run, at the context they are said to run at."""

import pytest
import torch

from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.inference import operator_step
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.operator_step import STEPS_BETWEEN_RESETS, build_decode_steps, build_operator_step
from flashslm.models.architecture import build_architecture
from flashslm.models.operator_spec import OPERATORS, depends_on_context
from flashslm.profiling.measure import ModelPoint, measure_latency_table, measure_models
from flashslm.profiling.plan import ProfilingPlan

pytestmark = pytest.mark.gpu
SIZES = ModelConfig(head_dim=64, num_meta_tokens=7)
VOCAB_SIZE = 1008


@pytest.fixture
def caches(monkeypatch):
    """The caches of the operator steps that a test builds."""
    found = []
    fill = operator_step._filled_cache
    monkeypatch.setattr(operator_step, "_filled_cache", lambda *args: found.append(fill(*args)) or found[-1])
    return found


@pytest.mark.parametrize("batch", [1, 20])
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_replay_runs_every_copy_at_the_context(operator, batch, caches):
    architecture = build_architecture(operator, 256, SIZES, VOCAB_SIZE)
    step = build_operator_step(architecture, operator, batch, 100, "cuda", torch.bfloat16, copies=3, passes=2)
    (cache,) = caches
    before = [[tensor.clone() for tensor in state] for state in cache.layers]
    for _ in range(5):
        step()
    torch.cuda.synchronize()
    assert cache.lengths_B.tolist() == [107] * batch
    assert all(tensor.isfinite().all() for state in cache.layers for tensor in state)
    for state, earlier in zip(cache.layers, before, strict=True):
        if depends_on_context(operator):  # the new key and value are in slot 107, and nowhere else
            changed = (state[0] != earlier[0]).any(dim=(0, 2, 3)).nonzero().flatten().tolist()
            assert changed == [107]
        elif state:
            assert not torch.equal(state[-1], earlier[-1])


def test_a_decode_step_keeps_near_its_context(monkeypatch):
    engines = []
    build = DecodeEngine.__init__
    monkeypatch.setattr(DecodeEngine, "__init__", lambda self, *args: engines.append(self) or build(self, *args))
    architecture = build_architecture("DMAF", 256, SIZES, VOCAB_SIZE)
    near, far = build_decode_steps(architecture, [10, 200], 2, "cuda", torch.bfloat16)
    (engine,) = engines
    for step, length in ((near, 17), (far, 207)):
        for call in range(2 * STEPS_BETWEEN_RESETS):
            step()
            assert engine.cache.lengths_B.tolist() == [length + call % STEPS_BETWEEN_RESETS + 1] * 2
    assert engine.tokens_B.min() >= 0 and engine.tokens_B.max() < VOCAB_SIZE


@pytest.mark.parametrize("weights", ["full", "int8"])
def test_a_table_and_a_growing_model_are_measured(weights):
    sizes = {"widths": (256, 384), "contexts": (64, 512), "batches": (1, 20)}
    config = ProfilingConfig(device="cuda", repeats=3, weights=weights, **sizes)
    table = measure_latency_table(ProfilingPlan(config, SIZES, VOCAB_SIZE))
    assert len(table.entries) == 5 * 2 * 2 * 2 and not table.left_out
    assert table.dtype == "bfloat16" and table.device.kind == "cuda" and table.weights == weights
    architecture = build_architecture("DMAF", 256, SIZES, VOCAB_SIZE)
    points = [ModelPoint(architecture, 512, 1, growing) for growing in (True, False)]
    timings = measure_models(points, config)
    assert all(0 < t.p10_ms <= t.median_ms <= t.p90_ms for t in timings)
    assert table.predict_ms(architecture, 300, 20) > 0

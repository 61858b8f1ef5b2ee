"""The benchmark of a step's plans: what it tries, what a failure costs, and what it says of the winners."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks import step_plans
from flashslm.inference.fused.step_plan import MOST_VECTORS, usual_plan
from flashslm.models.presets import PRESETS

CACHE = SimpleNamespace(slots=8208, first=lambda batch: batch)


@pytest.fixture
def session(monkeypatch):
    def step_ms(model, cache, plan):
        if plan.tile is not None and plan.tile.rows == 64:
            raise RuntimeError("out of resource: shared memory")
        return 8.0 - 2 * (plan.product == "tiled") - plan.attention.whole_waves

    monkeypatch.setattr(step_plans, "step_ms", step_ms)
    model = SimpleNamespace(architecture=PRESETS["qwen3-0.6b"])
    return step_plans.Session("qwen3-0.6b", model, CACHE, started=step_plans.time.monotonic(), budget_s=1e9)


@pytest.mark.parametrize("batch", [1, 8, 16, 64])
def test_the_fastest_of_both_is_timed_last(session, batch):
    list(session.run(batch))
    first, *_, last = session.rows
    assert first["name"] == "usual" and first["plan"] == step_plans.as_json(usual_plan(batch))
    assert last["name"] == "fastest of both" and last["ms"] == 5.0
    assert last["plan"]["product"] == "tiled" and last["plan"]["attention"]["whole_waves"]
    assert len({str(row["plan"]) for row in session.rows}) == len(session.rows)
    assert any(row["plan"]["product"] == "vector" for row in session.rows) == (batch <= MOST_VECTORS)


def test_a_plan_that_cannot_run_costs_no_other(session):
    list(session.run(8))
    failed = [row for row in session.rows if "failed" in row]
    assert len(failed) == 2 and all("RuntimeError: out of resource" in row["failed"] for row in failed)
    assert all("ms" in row for row in session.rows if row not in failed)


def test_what_comes_after_the_budget_is_listed_as_left_out(session):
    session.budget_s = -1
    list(session.run(8))
    assert session.rows and all(row["left_out"] for row in session.rows)
    assert len(list(step_plans.winners(session.rows))) == 1, "a head and no winner"


def test_the_table_has_a_line_per_batch(session):
    for batch in (16, 8):
        list(session.run(batch))
    _, eight, sixteen = step_plans.winners(session.rows)
    assert eight.split()[:5] == ["qwen3-0.6b", "8", "8.0000", "5.0000", "1.600"] and "fastest of both" in eight
    assert sixteen.split()[1] == "16"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU runs it")
def test_steps_that_are_not_fused_are_refused():
    from flashslm.config import ModelConfig
    from flashslm.models.architecture import build_architecture
    from flashslm.models.cache import Cache
    from flashslm.models.hybrid import HybridLM

    architecture = build_architecture("AF", 32, ModelConfig(head_dim=16), vocab_size=64)
    model = HybridLM.build(architecture, "cpu", torch.float32, seed=1)
    cache = Cache.allocate(architecture, 1, 4)
    with pytest.raises(RuntimeError, match="backend is torch: plans are of fused steps"):
        step_plans.step_ms(model, cache, usual_plan(1))

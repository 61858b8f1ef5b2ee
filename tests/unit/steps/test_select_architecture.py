"""What select_architecture publishes of a finished study, here of one that varied sizes."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture
from flashslm.search.finalists import Finalist
from flashslm.steps import select_architecture as module
from tests.unit.search.synthetic import BUDGET_MS, finish, make_proposer
from tests.unit.steps.test_search_architecture import make_context, manifest


def test_the_winner_has_the_sizes_of_its_trial(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"ffn_ratio": [3, 6], "head_dim": [32, 64]}
    candidates = make_proposer(sizes=sizes, seeding="none", trials=10).propose([])
    wide = next(c for c in candidates if c.sizes.ffn_ratio == 6 and "F" in c.operators)
    trials = [finish(candidate, 1.0 if candidate is wide else 2.0) for candidate in candidates]
    context = make_context({"search": {"sizes": sizes}}, "select_architecture")
    context = replace(context, inputs=context.inputs | {"dataset": manifest("a", metadata={"vocab_size": 512})})
    published: dict[str, Any] = {}
    monkeypatch.setattr(module, "open_study", lambda _: SimpleNamespace(finished=lambda: trials))
    monkeypatch.setattr(module, "budget_ms", lambda _: BUDGET_MS)
    monkeypatch.setattr(module, "measure_winners", lambda *_: [{"measured_ms": 1.0, "relative_error": 0.0}])
    monkeypatch.setattr(context, "publish_json", lambda name, files, facts: published.update(files))

    found = module.run(context)

    built = Architecture.model_validate(published["architecture.json"])
    assert built == wide.architecture and built.ffn_size == 6 * built.hidden_size
    assert published["best.json"]["sizes"] == wide.sizes.given()
    assert published["best.json"]["parameters"] == parameters(built)["total"]
    assert f"at width {built.hidden_size} with ffn_ratio 6, head_dim {built.head_dim}: proxy loss" in found["summary"]
    at_an_end = "ffn_ratio 6 is the largest that was searched"
    assert " ms/token by the table, 1 measured; the best of" in found["summary"]
    assert at_an_end in published["edges.json"] and f"; {at_an_end}" in found["summary"]
    assert found["distinct_architectures"] == len({trial.digest for trial in trials}) == 5


def test_a_winner_is_said_to_be_the_best_of_what_chose_it() -> None:
    losses = {"validation_losses_nats": [5.2], "test_losses_nats": [5.1], "validation_loss_nats": 5.2}
    first = Finalist(slot=60, operators="MD", width=64, latency_ms=1.0, test_loss_nats=5.1, **losses)
    failed = first.model_copy(update={"slot": 30, "test_loss_nats": None})
    said = "the best of 2 finalists with 1 new seed, of 96 trials; test loss 5.100 nats"
    assert module.won_against([first, failed], 96) == said
    assert module.won_against([], 96) == module.won_against([failed], 96) == "the best of 96 trials"


def test_a_measured_time_is_held_to_the_budget_that_the_table_was() -> None:
    assert module.beyond(2.0, 2.0) == "" and module.beyond(2.01, 2.0) == ", beyond the budget of 2"

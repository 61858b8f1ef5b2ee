"""Which designs are measured after the search, and how far the table is from them."""

from dataclasses import replace
from typing import Any

import pytest

from flashslm.config import OperatorSizes
from flashslm.profiling.timing import Timing
from flashslm.steps import winners as module
from flashslm.steps.winners import MAX_WINNERS, measure_winners
from tests.unit.search.synthetic import make_sized_table, make_table
from tests.unit.steps.test_search_architecture import make_context, manifest


def trial(operators: str, latency_ms: float, loss_nats: float) -> dict[str, Any]:
    return {"operators": operators, "width": 64, "latency_ms": latency_ms, "loss_nats": loss_nats}


@pytest.fixture
def context(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of a recipe like the table, whose machine takes a quarter longer for what begins with attention."""

    def measure(points: Any, profiling: Any) -> list[Timing]:
        slower = [1.25 if point.architecture.operators.startswith("A") else 1.0 for point in points]
        times = [make_table().predict_ms(p.architecture, p.context, p.batch) for p in points]
        return [Timing(ms * by, ms, ms, 3) for ms, by in zip(times, slower, strict=True)]

    monkeypatch.setattr(module, "measure_models", measure)
    made = make_context({"latency": {"context": 1024}, "model": make_table().sizes}, "select_architecture")
    inputs = made.inputs | {"dataset": manifest("a", metadata={"vocab_size": 512})}
    context = replace(made, inputs=inputs)
    monkeypatch.setattr(context, "read_json", lambda *_: make_table().model_dump(mode="json"))
    return context


def test_the_chosen_design_comes_first_and_errors_are_of_whole_models(context: Any) -> None:
    best, front = trial("DF", 3.5, 2.0), [trial("AF", 4.0, 2.2), trial("DF", 3.5, 2.0)]
    chosen, other = measure_winners(context, best, front, budget_ms=5.0)
    assert (chosen["operators"], chosen["predicted_ms"], chosen["measured_ms"]) == ("DF", 3.5, 3.5)
    assert chosen["relative_error"] == 0 and other["operators"] == "AF"
    assert (other["predicted_ms"], other["measured_ms"]) == (4.0, 5.0)
    assert other["relative_error"] == pytest.approx(-0.2) and other["context"] == 1024


def test_the_best_of_the_front_within_the_budget_are_measured(context: Any) -> None:
    front = [trial("D" * size, float(size), 3.0 - size / 10) for size in range(1, 9)]
    found = measure_winners(context, trial("DF", 3.5, 2.0), front, budget_ms=6.0)
    assert len(found) == MAX_WINNERS
    assert [winner["operators"] for winner in found] == ["DF", "DDDDDD", "DDDDD", "DDDD"]


def test_a_table_of_other_weights_is_refused(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    other = make_table().model_copy(update={"weights": "int8"})
    monkeypatch.setattr(context, "read_json", lambda *_: other.model_dump(mode="json"))
    with pytest.raises(ValueError, match=r"weights in 'int8', profiling.weights is 'full'"):
        measure_winners(context, trial("DF", 3.5, 2.0), [], budget_ms=5.0)


def test_a_winner_is_measured_with_its_own_sizes(context: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sized = make_sized_table(OperatorSizes(ffn_ratio=(6.0,)))
    monkeypatch.setattr(context, "read_json", lambda *_: sized.model_dump(mode="json"))
    built: list[int] = []

    def measure(points: Any, profiling: Any) -> list[Timing]:
        built.extend(point.architecture.ffn_size for point in points)
        return [Timing(sized.predict_ms(p.architecture, p.context, p.batch), 1.0, 1.0, 3) for p in points]

    monkeypatch.setattr(module, "measure_models", measure)
    own, wide = trial("DF", 3.5, 2.1) | {"sizes": {"ffn_ratio": 3.0}}, trial("DF", 4.5, 2.0)
    found = measure_winners(context, wide | {"sizes": {"ffn_ratio": 6.0}}, [own], budget_ms=6.0)
    assert built == [384, 128] and [w["sizes"]["ffn_ratio"] for w in found] == [6.0, 3.0]
    assert found[0]["predicted_ms"] == pytest.approx(1.0 + 2.0 + 0.5 * 384 / 128)

"""The gate's decision on every ground it can hold a candidate."""

import pytest

from flashslm.config import GateConfig
from flashslm.platform.gate import Measured, decide

CHAMPION = Measured(sha256="a", perplexity=10.0, latency_ms=2.0, parameters=1000, device="cpu", dataset_sha256="data")


def candidate(**changes: object) -> Measured:
    return CHAMPION.model_copy(update={"sha256": "b", "perplexity": 9.0, **changes})


def test_first_model_is_promoted_within_the_limits() -> None:
    verdict = decide(candidate(), None, "", GateConfig(max_perplexity=9.5, max_latency_ms=2.5, max_parameters=1000))
    assert verdict.decision == "promote" and not verdict.reasons
    assert len(verdict.checks) == 4


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        (GateConfig(max_perplexity=8.9), "perplexity 9, recipe's limit 8.9"),
        (GateConfig(max_latency_ms=1.9), "latency 2 ms/token, recipe's limit 1.9 ms/token"),
        (GateConfig(max_parameters=999), "parameters 1,000, recipe's limit 999"),
    ],
)
def test_recipe_limits_hold_even_the_first_model(limits: GateConfig, reason: str) -> None:
    verdict = decide(candidate(), None, "", limits)
    assert verdict.decision == "hold" and verdict.reasons == [reason]


def test_better_challenger_is_promoted() -> None:
    assert decide(candidate(), CHAMPION, "1", GateConfig()).decision == "promote"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "a"}, "the same object"),
        ({"perplexity": 10.0}, "must be under 10.0000"),
        ({"latency_ms": 2.21}, "latency 2.2100 ms/token, at most 2.2000"),
        ({"parameters": 1101}, "parameters 1,101, at most 1,100"),
        ({"dataset_sha256": "other"}, "not comparable"),
    ],
)
def test_challenger_is_held(changes: dict[str, object], reason: str) -> None:
    verdict = decide(candidate(**changes), CHAMPION, "1", GateConfig())
    assert verdict.decision == "hold"
    assert len(verdict.reasons) == 1 and reason in verdict.reasons[0]


def test_wanted_gain_raises_the_bar() -> None:
    assert decide(candidate(perplexity=9.6), CHAMPION, "1", GateConfig(min_perplexity_gain=0.05)).decision == "hold"
    assert decide(candidate(perplexity=9.4), CHAMPION, "1", GateConfig(min_perplexity_gain=0.05)).decision == "promote"


def test_latency_of_another_device_is_not_compared() -> None:
    verdict = decide(candidate(latency_ms=50.0, device="gpu"), CHAMPION, "1", GateConfig())
    assert verdict.decision == "promote"
    assert not any("latency" in check for check in verdict.checks)

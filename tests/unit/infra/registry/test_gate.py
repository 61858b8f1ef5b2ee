"""The gate's decision on every ground it can hold a candidate."""

import pytest

from flashslm.config import GateConfig
from flashslm.infra.registry.gate import Comparison, MeasuredModel, decide, decide_retraining

CHAMPION = MeasuredModel(
    sha256="a", perplexity=10.0, latency_ms=2.0, parameters=1000, device="cpu", dataset_sha256="data"
)


def candidate(**changes: object) -> MeasuredModel:
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


@pytest.mark.parametrize(("full", "decision"), [(8.96, "promote"), (8.95, "hold"), (9.1, "promote")])
def test_weights_of_8_bits_are_held_to_what_they_were_before(full: float, decision: str) -> None:
    verdict = decide(candidate(full_perplexity=full), None, "", GateConfig())
    assert verdict.decision == decision
    assert f"weights in int8 9.0000, at most {full * 1.005:.4f} (before rounding {full:.4f}: " in verdict.checks[0]
    assert decide(candidate(full_perplexity=full), None, "", GateConfig(max_rounding_loss=0.01)).decision == "promote"
    retrained = decide_retraining(candidate(full_perplexity=full), CHAMPION, "1", [], GateConfig())
    assert retrained.decision == decision


def test_better_challenger_is_promoted() -> None:
    assert decide(candidate(), CHAMPION, "1", GateConfig()).decision == "promote"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"sha256": "a"}, "the same object"),
        ({"perplexity": 10.0}, "must be under 10.0000"),
        ({"latency_ms": 2.21}, "latency 2.2100 ms/token, at most 2.2000"),
        ({"parameters": 1101}, "parameters 1,101, at most 1,100"),
        ({"dataset_sha256": "other"}, "`flashslm models register DIRECTORY --config F --alias champion --replaces "),
    ],
)
def test_challenger_is_held(changes: dict[str, object], reason: str) -> None:
    verdict = decide(candidate(**changes), CHAMPION, "1", GateConfig())
    assert verdict.decision == "hold"
    assert len(verdict.reasons) == 1 and reason in verdict.reasons[0]


def test_perplexities_of_other_documents_or_contexts_are_not_compared() -> None:
    unpaired = compared(metric="test/perplexity", challenger=9.0, must_gain=True)
    verdict = decide(candidate(), CHAMPION, "1", GateConfig(), unpaired)
    assert verdict.decision == "hold" and "evaluation.sequence_length, stride, max_tokens" in verdict.reasons[0]
    assert "`flashslm models register DIRECTORY" in verdict.reasons[0], "a held candidate is not registered"
    paired = unpaired.model_copy(update={"low": 8.9, "high": 9.1, "method": "bootstrap", "items": 9})
    assert decide(candidate(), CHAMPION, "1", GateConfig(), paired).decision == "promote"


def test_wanted_gain_raises_the_bar() -> None:
    assert decide(candidate(perplexity=9.6), CHAMPION, "1", GateConfig(min_perplexity_gain=0.05)).decision == "hold"
    assert decide(candidate(perplexity=9.4), CHAMPION, "1", GateConfig(min_perplexity_gain=0.05)).decision == "promote"


def test_latency_of_another_device_is_not_compared() -> None:
    verdict = decide(candidate(latency_ms=50.0, device="gpu"), CHAMPION, "1", GateConfig())
    assert verdict.decision == "promote"
    assert not any("latency" in check for check in verdict.checks)


def compared(**changes: object) -> Comparison:
    values = {"metric": "perplexity", "data": "first data", "challenger": 10.0, "champion": 10.0}
    return Comparison.model_validate(values | {"higher_is_better": False} | changes)


GAIN = compared(data="new data", challenger=8.0, must_gain=True)
ACCURACY = compared(metric="accuracy", challenger=0.5, champion=0.5, higher_is_better=True)


def test_challenger_that_gains_and_falls_nowhere_is_promoted_as_the_champions_child() -> None:
    verdict = decide_retraining(candidate(), CHAMPION, "4", [GAIN, compared(), ACCURACY], GateConfig())
    assert verdict.decision == "promote" and (verdict.parent, verdict.champion_version) == ("4", "4")
    assert verdict.checks == [
        "pass: perplexity on new data 8.0000, must be under 10.0000 (champion 10.0000)",
        "pass: perplexity on first data 10.0000, at most 10.1000 (champion 10.0000)",
        "pass: accuracy on first data 0.5000, at least 0.4800 (champion 0.5000)",
    ]


@pytest.mark.parametrize(
    ("comparison", "limits", "passes"),
    [
        (compared(challenger=10.1), GateConfig(), True),
        (compared(challenger=10.11), GateConfig(), False),
        (compared(challenger=10.11), GateConfig(max_perplexity_increase=0.02), True),
        (compared(challenger=float("nan")), GateConfig(), False),
        (ACCURACY.model_copy(update={"challenger": 0.48}), GateConfig(), True),
        (ACCURACY.model_copy(update={"challenger": 0.47}), GateConfig(), False),
        (ACCURACY.model_copy(update={"challenger": 0.47}), GateConfig(max_accuracy_drop=0.1), True),
        (GAIN.model_copy(update={"challenger": 10.0}), GateConfig(), False),
        (GAIN, GateConfig(min_perplexity_gain=0.19), True),
        (GAIN, GateConfig(min_perplexity_gain=0.21), False),
    ],
)
def test_every_evaluation_has_its_tolerance(comparison: Comparison, limits: GateConfig, passes: bool) -> None:
    verdict = decide_retraining(candidate(), CHAMPION, "1", [comparison, compared()], limits)
    assert verdict.decision == ("promote" if passes else "hold")
    assert len(verdict.reasons) == (not passes)


def test_latency_budget_holds_a_challenger() -> None:
    verdict = decide_retraining(candidate(latency_ms=2.6), CHAMPION, "1", [GAIN], GateConfig(max_latency_ms=2.5))
    assert verdict.reasons == ["latency 2.6 ms/token, recipe's limit 2.5 ms/token"]


def test_a_challenger_of_other_weights_is_held_to_the_champions_latency() -> None:
    rounded = {"full_perplexity": 9.99}
    champion, slower = CHAMPION.model_copy(update=rounded), candidate(latency_ms=2.8)
    verdict = decide_retraining(slower, champion, "1", [GAIN], GateConfig())
    assert verdict.reasons == ["latency 2.8000 ms/token, at most 2.2000 (champion 2.0000)"]
    for same in (slower.model_copy(update=rounded | {"perplexity": 9.99}), slower.model_copy(update={"device": "gpu"})):
        assert decide_retraining(same, champion, "1", [GAIN], GateConfig()).decision == "promote"
    assert decide_retraining(slower, CHAMPION, "1", [GAIN], GateConfig()).decision == "promote"
    faster = candidate(latency_ms=1.4, full_perplexity=9.0)
    assert decide_retraining(faster, CHAMPION, "1", [GAIN], GateConfig()).decision == "promote"


def test_what_was_rolled_back_does_not_come_back_by_itself() -> None:
    verdict = decide_retraining(candidate(), CHAMPION, "1", [GAIN], GateConfig(), former="b")
    assert len(verdict.reasons) == 1 and "previous champion, which was rolled back" in verdict.reasons[0]
    same = decide_retraining(candidate(sha256="a"), CHAMPION, "1", [GAIN], GateConfig(), former="z")
    assert len(same.reasons) == 1 and "the challenger is the champion" in same.reasons[0]


def interval(low: float, high: float, **changes: object) -> Comparison:
    return compared(low=low, high=high, items=16, method="McNemar", p_value=0.5, **changes)


@pytest.mark.parametrize(
    ("comparison", "passes", "word"),
    [
        # of what the challenger was trained for, the gain itself must be certain
        (interval(7.5, 8.5, challenger=8.0, must_gain=True), True, "better"),
        (interval(7.5, 10.5, challenger=9.0, must_gain=True), False, "cannot tell"),
        (interval(10.5, 12.0, challenger=11.0, must_gain=True), False, "worse"),
        # elsewhere a loss within the tolerance passes, and is called a loss
        (interval(10.02, 10.08, challenger=10.05), True, "worse"),
        (interval(10.2, 10.4, challenger=10.3), False, "worse"),
        # a bound inside the interval: the measured value decides by default
        (interval(9.8, 10.3, challenger=10.05), True, "cannot tell"),
        (interval(9.9, 10.4, challenger=10.15), False, "cannot tell"),
        (interval(0.2, 0.7, metric="acc", challenger=0.45, champion=0.5, higher_is_better=True), False, "cannot tell"),
        (interval(0.49, 0.52, metric="acc", challenger=0.5, champion=0.5, higher_is_better=True), True, "cannot tell"),
    ],
)
def test_the_gate_says_better_worse_or_cannot_tell(comparison: Comparison, passes: bool, word: str) -> None:
    verdict = decide_retraining(candidate(), CHAMPION, "1", [comparison], GateConfig())
    assert (verdict.decision == "promote") == passes
    assert f": {word}, 95 % interval " in verdict.checks[0] and "(McNemar, 16 items)" in verdict.checks[0]


@pytest.mark.parametrize(("choice", "passes"), [("hold", False), ("measured", True), ("promote", True)])
@pytest.mark.parametrize("kind", ["gain", "loss"])
def test_the_recipe_says_what_follows_when_the_gate_cannot_tell(choice: str, passes: bool, kind: str) -> None:
    unclear = interval(9.0, 10.5, challenger=9.5, must_gain=kind == "gain")
    limits = GateConfig.model_validate({"cannot_tell": {kind: choice}})
    verdict = decide_retraining(candidate(), CHAMPION, "1", [unclear], limits)
    assert (verdict.decision == "promote") == passes
    assert verdict.checks[0].endswith(f"the bound is inside: gate.cannot_tell.{kind} is {choice}")
    worse = unclear.model_copy(update={"challenger": 10.2, "high": 10.9})
    verdict = decide_retraining(candidate(), CHAMPION, "1", [worse], limits)
    assert (verdict.decision == "promote") == (choice == "promote")


def test_a_candidate_is_held_to_the_champion_document_by_document() -> None:
    unsure = interval(8.0, 10.5, metric="test/perplexity", challenger=9.0, must_gain=True)
    verdict = decide(candidate(), CHAMPION, "1", GateConfig(), unsure)
    assert verdict.decision == "hold" and "cannot tell, 95 % interval 8.0000 to 10.5000" in verdict.reasons[0]
    sure = interval(8.0, 9.5, metric="test/perplexity", challenger=9.0, must_gain=True)
    assert decide(candidate(), CHAMPION, "1", GateConfig(), sure).decision == "promote"


def steady(model: MeasuredModel, ratio: float, half: float, latency_ms: float = 2.0) -> MeasuredModel:
    """With a latency `ratio` times the reference's, and an interval of `half` on either side, relatively."""
    names = ("latency_over_reference", "latency_over_reference_low", "latency_over_reference_high")
    values = dict(zip(names, (ratio, ratio / (1 + half), ratio * (1 + half)), strict=True))
    ends = {"latency_low_ms": latency_ms / (1 + half), "latency_high_ms": latency_ms * (1 + half)}
    return model.model_copy(update=values | ends | {"latency_ms": latency_ms})


@pytest.mark.parametrize(
    ("mine", "decision", "word"),
    [
        (steady(candidate(), 4.0, 0.01), "promote", "cannot tell"),  # as fast as the champion: within the tolerance
        (steady(candidate(), 4.0, 0.01, latency_ms=3.0), "promote", "cannot tell"),  # on a day when all is slower
        (steady(candidate(), 3.0, 0.01), "promote", "better"),
        (steady(candidate(), 5.0, 0.01), "hold", "worse"),
        (steady(candidate(), 4.0, 0.4), "hold", "cannot tell"),  # too noisy for a verdict
    ],
)
def test_latencies_are_compared_beside_the_reference_model(mine: MeasuredModel, decision: str, word: str) -> None:
    verdict = decide(mine, steady(CHAMPION, 4.0, 0.01), "1", GateConfig())
    check = next(check for check in verdict.checks if "latency" in check)
    assert verdict.decision == decision and f": {word}, beside the reference model" in check


def test_what_follows_a_noisy_latency_is_the_recipes_choice() -> None:
    noisy, champion = steady(candidate(), 4.0, 0.4), steady(CHAMPION, 4.0, 0.01)
    for choice, decision in (("hold", "hold"), ("measured", "promote"), ("promote", "promote")):
        limits = GateConfig.model_validate({"cannot_tell": {"latency": choice}})
        verdict = decide(noisy, champion, "1", limits)
        assert verdict.decision == decision
        assert any(f"the bound is inside: gate.cannot_tell.latency is {choice}" in check for check in verdict.checks)


@pytest.mark.parametrize("busy", ["candidate", "champion"])
def test_a_busy_machine_ends_without_a_verdict(busy: str) -> None:
    """Two runs of one design on a busy machine: 1.34 times, interval 1.10 to 1.62, drifts of 81 % and 18 %."""
    drift = {"candidate": 0.18, "champion": 0.18, busy: 0.81}
    mine = steady(candidate(latency_drift=drift["candidate"]), 5.0, 0.01)
    champion = steady(CHAMPION, 4.0, 0.01).model_copy(update={"latency_drift": drift["champion"]})
    for choice, decision in (("hold", "hold"), ("measured", "hold"), ("promote", "promote")):
        verdict = decide(mine, champion, "1", GateConfig.model_validate({"cannot_tell": {"latency": choice}}))
        check = next(check for check in verdict.checks if "latency" in check)
        assert verdict.decision == decision and ": cannot tell, beside the reference model 1.250 times" in check
        assert f"drifted by 81% beside the {busy}, at most 50%: gate.cannot_tell.latency is {choice}" in check
    quiet = decide(mine.model_copy(update={"latency_drift": 0.5}), steady(CHAMPION, 4.0, 0.01), "1", GateConfig())
    assert any(": worse, beside the reference" in check for check in quiet.checks)


@pytest.mark.parametrize(
    ("half", "limit", "decision"),
    [(0.01, 2.1, "promote"), (0.01, 1.9, "hold"), (0.2, 2.1, "hold"), (0.2, 3.0, "promote")],
)
def test_a_limit_on_latency_is_judged_by_its_interval(half: float, limit: float, decision: str) -> None:
    verdict = decide(steady(candidate(), 4.0, half), None, "", GateConfig(max_latency_ms=limit))
    assert verdict.decision == decision


@pytest.mark.parametrize("kind", ["gain", "loss"])
def test_a_number_that_is_not_finite_passes_nowhere(kind: str) -> None:
    """Not even where the recipe lets pass what an interval cannot tell, and not as the first model."""
    nan = float("nan")
    limits = GateConfig.model_validate({"cannot_tell": {kind: "promote"}})
    unknown = interval(nan, nan, challenger=nan, must_gain=kind == "gain")
    assert decide_retraining(candidate(), CHAMPION, "1", [unknown], limits).decision == "hold"
    for value in (nan, float("inf")):
        first = decide(candidate(perplexity=value), None, "", GateConfig())
        assert first.reasons == [f"perplexity {value} is not a finite number"]
        assert decide(candidate(latency_ms=value), None, "", GateConfig()).decision == "hold"

"""The gate: may a candidate become champion? Plain numbers in, a decision with its reasons out."""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from flashslm.config import GateConfig
from flashslm.config.training import Unclear
from flashslm.statistics import Judgement, judge

if TYPE_CHECKING:
    from flashslm.infra.storage.object_store import Manifest


# design_and_train registers only what it promotes: `flashslm models promote` cannot name a candidate that was held.
_BY_HAND = (
    "make it champion by hand: `flashslm models register DIRECTORY --config F --alias champion --replaces VERSION`"
)
_RATIO = ("latency_over_reference", "latency_over_reference_low", "latency_over_reference_high")
_STEADY = ("latency_low_ms", "latency_high_ms", *_RATIO, "latency_drift")
# Of the reference model, slowest round over fastest, less 1: beyond it a busy machine slows two models unequally.
MAX_DRIFT = 0.5


class MeasuredModel(BaseModel):
    """What the gate compares, of the candidate and of the champion alike."""

    sha256: str  # of the exported object
    perplexity: float  # per token of the test split
    latency_ms: float  # per decoded token, at the recipe's context and batch
    parameters: int
    device: str  # fingerprint id of the device the latency was measured on
    dataset_sha256: str  # of the data the perplexity was measured on
    full_perplexity: float | None = None  # before rounding, of weights that are served in 8 bits
    latency_low_ms: float | None = None  # 95 % interval over rounds; None = measured by an earlier version
    latency_high_ms: float | None = None
    latency_over_reference: float | None = None  # the fixed reference model's latency on the same device, with interval
    latency_over_reference_low: float | None = None
    latency_over_reference_high: float | None = None
    latency_drift: float | None = None  # of the reference model's rounds, relative

    @property
    def is_rounded(self) -> bool:
        """Whether it is served with weights of 8 bits."""
        return self.full_perplexity is not None

    @classmethod
    def of(cls, exported: "Manifest", evaluation: "Manifest") -> "MeasuredModel":
        """A candidate, by what its export and its evaluation say."""
        quality = {"perplexity": evaluation.metadata["test/perplexity"]}
        quality |= {"dataset_sha256": evaluation.metadata["dataset_sha256"]}
        quality |= {"full_perplexity": evaluation.metadata.get("test/full_perplexity")}
        size = {name: exported.metadata[name] for name in ("latency_ms", "parameters", "device")}
        steady = {name: exported.metadata.get(name) for name in _STEADY}
        return cls.model_validate({"sha256": exported.sha256} | quality | size | steady)


class Comparison(BaseModel):
    """One evaluation of challenger and champion, on the same data, by the same code, on the same device."""

    metric: str
    data: str  # what it was measured on
    challenger: float
    champion: float
    higher_is_better: bool
    must_gain: bool = False  # what the challenger was trained for; elsewhere it must only not fall
    low: float | None = None  # 95 % interval of the challenger's value beside the champion's, paired by item
    high: float | None = None
    p_value: float | None = None  # of the hypothesis that both are equal
    items: int = 0
    method: str = ""

    def judged(self, bound: float) -> Judgement | None:
        """What the interval says of a bound; None without an interval."""
        if self.low is None or self.high is None:
            return None
        return judge(self.low, self.high, bound, higher_is_better=self.higher_is_better)

    def interval_text(self) -> str:
        """Whether the challenger is better than the champion, with the figures; "" without an interval."""
        outcome = self.judged(self.champion)
        if outcome is None:
            return ""
        interval = f"95 % interval {_figure(self.low)} to {_figure(self.high)}"
        return f"{outcome}, {interval} ({self.method}, {self.items:,} items)"


def _figure(value: float | None) -> str:
    return "?" if value is None else f"{value:.4f}" if abs(value) < 1e6 else f"{value:.3g}"


class Verdict(BaseModel):
    """`reasons` explain a hold; `checks` list everything that was compared."""

    decision: Literal["promote", "hold"]
    reasons: list[str]
    checks: list[str]
    candidate: MeasuredModel
    champion: MeasuredModel | None
    champion_version: str  # "" when there was none: registration aborts if it changed since
    parent: str = ""  # the version whose weights the candidate was trained from


def decide(
    candidate: MeasuredModel,
    champion: MeasuredModel | None,
    champion_version: str,
    limits: GateConfig,
    perplexity: Comparison | None = None,
) -> Verdict:
    """Hold the candidate to the recipe's limits and, if there is a champion, to the champion.

    `perplexity` is the comparison document by document, where the champion's evaluation is still there; one without
    an interval, since other documents were read or in another way, holds the candidate.
    """
    results = _within_limits(candidate, limits)
    if champion is None:
        results.append((True, "there is no champion yet"))
    elif champion.sha256 == candidate.sha256:
        results.append((False, f"the candidate is the champion (version {champion_version}): the same object"))
    else:
        results += _against(candidate, champion, limits, perplexity)
    return _verdict(results, candidate, champion, champion_version)


def decide_retraining(
    candidate: MeasuredModel,
    champion: MeasuredModel,
    champion_version: str,
    comparisons: list[Comparison],
    limits: GateConfig,
    former: str = "",
) -> Verdict:
    """Hold a challenger that was trained from the champion to the limits and to every comparison.

    The architecture is the champion's, so latency and size are held to the recipe's limits alone; where only one of
    both is served in 8 bits, the latency is also held to the champion's on the same device. `former` is the sha256 of
    the champion before this one: what was rolled back does not come back by itself.
    """
    results = _within_limits(candidate, limits)
    if candidate.is_rounded != champion.is_rounded and candidate.device == champion.device:
        results.append(_latency_against(candidate, champion, limits))
    if candidate.sha256 in (champion.sha256, former):
        whose = "champion" if candidate.sha256 == champion.sha256 else "previous champion, which was rolled back"
        results.append((False, f"the challenger is the {whose}: the same object; `flashslm models promote` decides"))
    results += [_compare(comparison, limits) for comparison in comparisons]
    return _verdict(results, candidate, champion, champion_version, champion_version)


LimitCheck = tuple[bool, str]  # passed, what was compared


def _verdict(
    results: list[LimitCheck],
    candidate: MeasuredModel,
    champion: MeasuredModel | None,
    champion_version: str,
    parent: str = "",
) -> Verdict:
    reasons = [text for passed, text in results if not passed]
    return Verdict(
        decision="hold" if reasons else "promote",
        reasons=reasons,
        checks=[f"{'pass' if passed else 'fail'}: {text}" for passed, text in results],
        candidate=candidate,
        champion=champion,
        champion_version=champion_version,
        parent=parent,
    )


def _within_limits(candidate: MeasuredModel, limits: GateConfig) -> list[LimitCheck]:
    results = _not_finite(candidate)
    results += _limit("perplexity", candidate.perplexity, limits.max_perplexity)
    results += _rounding_limit(candidate, limits)
    results += [_latency_limit(candidate, limits)] if limits.max_latency_ms else []
    return results + _limit("parameters", candidate.parameters, limits.max_parameters)


def _not_finite(candidate: MeasuredModel) -> list[LimitCheck]:
    """Without a limit and a champion nothing else would hold a model that gives no numbers."""
    measured = {"perplexity": candidate.perplexity, "latency_ms": candidate.latency_ms}
    return [
        (False, f"{name} {value} is not a finite number")
        for name, value in measured.items()
        if not math.isfinite(value)
    ]


def _limit(name: str, value: float, limit: float) -> list[LimitCheck]:
    return [(value <= limit, f"{name} {value:,.5g}, recipe's limit {limit:,.5g}")] if limit else []


def _rounding_limit(candidate: MeasuredModel, limits: GateConfig) -> list[LimitCheck]:
    """What 8 bits cost, on the same documents; nothing to check for weights that are not rounded."""
    full = candidate.full_perplexity
    if full is None:
        return []
    allowed = full * (1 + limits.max_rounding_loss)
    text = f"perplexity of weights in int8 {candidate.perplexity:.4f}, at most {allowed:.4f} "
    text += f"(before rounding {full:.4f}: {candidate.perplexity / full - 1:+.2%})"
    return [(candidate.perplexity <= allowed, text)]


def _latency_limit(candidate: MeasuredModel, limits: GateConfig) -> LimitCheck:
    value, limit = candidate.latency_ms, limits.max_latency_ms
    low, high = candidate.latency_low_ms, candidate.latency_high_ms
    text = f"latency {value:,.5g} ms/token, recipe's limit {limit:,.5g} ms/token"
    if low is None or high is None:
        return value <= limit, text
    judged, unclear = judge(low, high, limit, higher_is_better=False), limits.cannot_tell.latency
    interval = f"95 % interval {low:.4g} to {high:.4g}"
    if judged == "cannot tell":
        return _decided(text, value <= limit, f"cannot tell, {interval}", judged, unclear, "latency")
    return judged == "better", text


def _compare(c: Comparison, limits: GateConfig) -> LimitCheck:
    """A number that is not finite passes nowhere."""
    kind: Literal["gain", "loss"] = "gain" if c.must_gain else "loss"
    if c.must_gain:
        bound, rule = c.champion * (1 - limits.min_perplexity_gain), "must be under"
    elif c.higher_is_better:
        bound, rule = max(0.0, c.champion - limits.max_accuracy_drop), "at least"
    else:
        bound, rule = c.champion * (1 + limits.max_perplexity_increase), "at most"
    text = f"{c.metric} on {c.data} {c.challenger:.4f}, {rule} {bound:.4f} (champion {c.champion:.4f})"
    if not (math.isfinite(c.challenger) and math.isfinite(c.champion)):
        return False, text
    measured = c.challenger < bound if c.must_gain else _keeps(c.challenger, bound, c.higher_is_better)
    return _decided(text, measured, c.interval_text(), c.judged(bound), getattr(limits.cannot_tell, kind), kind)


def _keeps(value: float, bound: float, higher_is_better: bool) -> bool:
    return value >= bound if higher_is_better else value <= bound


def _decided(
    text: str,
    measured: bool,
    interval: str,
    judged: Judgement | None,
    unclear: Unclear,
    kind: str,
    why: str = "the bound is inside",
) -> LimitCheck:
    """By the interval; where it cannot tell, as the recipe says; without one, by the measured value."""
    text += f": {interval}" if interval else ""
    if judged is None:
        return measured, text
    if judged != "cannot tell":
        return judged == "better", text
    text += f"; {why}: gate.cannot_tell.{kind} is {unclear}"
    return {"hold": False, "measured": measured, "promote": True}[unclear], text


def _against(
    candidate: MeasuredModel, champion: MeasuredModel, limits: GateConfig, perplexity: Comparison | None
) -> list[LimitCheck]:
    """Quality, latency and size relative to the champion; a latency of another device is left out."""
    if candidate.dataset_sha256 != champion.dataset_sha256:
        text = (
            "the champion's perplexity was measured on other data "
            f"({champion.dataset_sha256[:12]} against {candidate.dataset_sha256[:12]}): not comparable; "
            f"run the retraining pipeline, which measures both, or {_BY_HAND}"
        )
        return [(False, text)]
    if perplexity and perplexity.low is None:
        text = (
            f"perplexity {candidate.perplexity:.4f} and the champion's {champion.perplexity:.4f} were not measured on "
            "the same documents with the same context and stride, or one by an earlier version of flashslm: not "
            "comparable; evaluate as the champion's run did (evaluation.sequence_length, stride, max_tokens; seed) or, "
            f"after an earlier version, run the retraining pipeline, which measures both, or {_BY_HAND}"
        )
        return [(False, text)]
    compared = perplexity or Comparison(
        metric="test/perplexity",
        data="the same data",
        challenger=candidate.perplexity,
        champion=champion.perplexity,
        higher_is_better=False,
        must_gain=True,
    )
    results = [_compare(compared, limits)]
    if candidate.device == champion.device:
        results.append(_latency_against(candidate, champion, limits))
    size = champion.parameters * (1 + limits.max_size_increase)
    text = f"parameters {candidate.parameters:,}, at most {size:,.0f} (champion {champion.parameters:,})"
    results.append((candidate.parameters <= size, text))
    return results


def _latency_against(candidate: MeasuredModel, champion: MeasuredModel, limits: GateConfig) -> LimitCheck:
    """By their latencies over the reference model's, where both have them: the device may be slower today."""
    allowed = champion.latency_ms * (1 + limits.max_latency_increase)
    text = f"latency {candidate.latency_ms:.4f} ms/token, at most {allowed:.4f} (champion {champion.latency_ms:.4f})"
    mine, other = ([getattr(model, name) for name in _RATIO] for model in (candidate, champion))
    if None in mine or None in other:
        return candidate.latency_ms <= allowed, text
    ratio = mine[0] / other[0]
    half = math.hypot(*(math.log(high / low) / 2 for _, low, high in (mine, other)))
    low, high, bound = ratio * math.exp(-half), ratio * math.exp(half), 1 + limits.max_latency_increase
    outcome, judged = (judge(low, high, than, higher_is_better=False) for than in (1.0, bound))
    why = "the bound is inside"
    drift, whose = max((candidate.latency_drift or 0.0, "candidate"), (champion.latency_drift or 0.0, "champion"))
    if drift > MAX_DRIFT:
        outcome = judged = "cannot tell"
        why = f"the reference drifted by {drift:.0%} beside the {whose}, at most {MAX_DRIFT:.0%}"
    interval = f"{outcome}, beside the reference model {ratio:.3f} times the champion's, 95 % interval {low:.3f} to "
    unclear = limits.cannot_tell.latency
    return _decided(text, ratio <= bound, f"{interval}{high:.3f}", judged, unclear, "latency", why)

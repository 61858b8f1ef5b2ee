"""The gate: may a candidate become champion? Plain numbers in, a decision with its reasons out."""

from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel

from flashslm.config import GateConfig

if TYPE_CHECKING:
    from flashslm.infra.storage.object_store import Manifest


class MeasuredModel(BaseModel):
    """What the gate compares, of the candidate and of the champion alike."""

    sha256: str  # of the exported object
    perplexity: float  # per token of the test split
    latency_ms: float  # per decoded token, at the recipe's context and batch
    parameters: int
    device: str  # fingerprint id of the device the latency was measured on
    dataset_sha256: str  # of the data the perplexity was measured on

    @classmethod
    def of(cls, exported: "Manifest", evaluation: "Manifest") -> "MeasuredModel":
        """A candidate, by what its export and its evaluation say."""
        quality = {"perplexity": evaluation.metadata["test/perplexity"]}
        quality |= {"dataset_sha256": evaluation.metadata["dataset_sha256"]}
        size = {name: exported.metadata[name] for name in ("latency_ms", "parameters", "device")}
        return cls.model_validate({"sha256": exported.sha256} | quality | size)


class Comparison(BaseModel):
    """One evaluation of challenger and champion, on the same data, by the same code, on the same device."""

    metric: str
    data: str  # what it was measured on
    challenger: float
    champion: float
    higher_is_better: bool
    must_gain: bool = False  # what the challenger was trained for; elsewhere it must only not fall


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
    candidate: MeasuredModel, champion: MeasuredModel | None, champion_version: str, limits: GateConfig
) -> Verdict:
    """Hold the candidate to the recipe's limits and, if there is a champion, to the champion."""
    results = _within_limits(candidate, limits)
    if champion is None:
        results.append((True, "there is no champion yet"))
    elif champion.sha256 == candidate.sha256:
        results.append((False, f"the candidate is the champion (version {champion_version}): the same object"))
    else:
        results += _against(candidate, champion, limits)
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

    The architecture is the champion's, so latency and size are held to the recipe's limits alone. `former` is the
    sha256 of the champion before this one: what was rolled back does not come back by itself.
    """
    results = _within_limits(candidate, limits)
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
    limited = (
        ("perplexity", candidate.perplexity, limits.max_perplexity, ""),
        ("latency", candidate.latency_ms, limits.max_latency_ms, " ms/token"),
        ("parameters", candidate.parameters, limits.max_parameters, ""),
    )
    return [
        (value <= limit, f"{name} {value:,.5g}{unit}, recipe's limit {limit:,.5g}{unit}")
        for name, value, limit, unit in limited
        if limit
    ]


def _compare(c: Comparison, limits: GateConfig) -> LimitCheck:
    """A number that is not finite passes nowhere."""
    where = f"{c.metric} on {c.data} {c.challenger:.4f}"
    if c.must_gain:
        bound = c.champion * (1 - limits.min_perplexity_gain)
        text = f"{where}, must be under {bound:.4f} (champion {c.champion:.4f})"
        return c.challenger < bound, text
    if c.higher_is_better:
        bound = max(0.0, c.champion - limits.max_accuracy_drop)
        return c.challenger >= bound, f"{where}, at least {bound:.4f} (champion {c.champion:.4f})"
    bound = c.champion * (1 + limits.max_perplexity_increase)
    return c.challenger <= bound, f"{where}, at most {bound:.4f} (champion {c.champion:.4f})"


def _against(candidate: MeasuredModel, champion: MeasuredModel, limits: GateConfig) -> list[LimitCheck]:
    """Quality, latency and size relative to the champion; a latency of another device is left out."""
    if candidate.dataset_sha256 != champion.dataset_sha256:
        text = (
            "the champion's perplexity was measured on other data "
            f"({champion.dataset_sha256[:12]} against {candidate.dataset_sha256[:12]}): not comparable; "
            "run the retraining pipeline, or decide with `flashslm models promote`"
        )
        return [(False, text)]
    wanted = champion.perplexity * (1 - limits.min_perplexity_gain)
    results = [
        (
            candidate.perplexity < wanted,
            f"perplexity {candidate.perplexity:.4f}, must be under {wanted:.4f} "
            f"(champion {champion.perplexity:.4f}, wanted gain {limits.min_perplexity_gain:.1%})",
        )
    ]
    if candidate.device == champion.device:
        allowed = champion.latency_ms * (1 + limits.max_latency_increase)
        text = (
            f"latency {candidate.latency_ms:.4f} ms/token, at most {allowed:.4f} (champion {champion.latency_ms:.4f})"
        )
        results.append((candidate.latency_ms <= allowed, text))
    size = champion.parameters * (1 + limits.max_size_increase)
    text = f"parameters {candidate.parameters:,}, at most {size:,.0f} (champion {champion.parameters:,})"
    results.append((candidate.parameters <= size, text))
    return results

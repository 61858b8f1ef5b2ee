"""The gate: may a candidate become champion? Plain numbers in, a decision with its reasons out."""

from typing import Literal

from pydantic import BaseModel

from flashslm.config import GateConfig


class Measured(BaseModel):
    """What the gate compares, of the candidate and of the champion alike."""

    sha256: str  # of the exported object
    perplexity: float
    latency_ms: float  # per decoded token, at the recipe's context and batch
    parameters: int
    device: str  # fingerprint id of the device the latency was measured on
    dataset_sha256: str  # of the data the perplexity was measured on


class Verdict(BaseModel):
    """`reasons` explain a hold; `checks` list everything that was compared."""

    decision: Literal["promote", "hold"]
    reasons: list[str]
    checks: list[str]
    candidate: Measured
    champion: Measured | None
    champion_version: str  # "" when there was none: registration aborts if it changed since


def decide(candidate: Measured, champion: Measured | None, champion_version: str, limits: GateConfig) -> Verdict:
    """Hold the candidate to the recipe's limits and, if there is a champion, to the champion."""
    checks: list[str] = []
    reasons: list[str] = []

    def check(passed: bool, text: str) -> None:
        checks.append(f"{'pass' if passed else 'fail'}: {text}")
        if not passed:
            reasons.append(text)

    for name, value, limit, unit in (
        ("perplexity", candidate.perplexity, limits.max_perplexity, ""),
        ("latency", candidate.latency_ms, limits.max_latency_ms, " ms/token"),
        ("parameters", candidate.parameters, limits.max_parameters, ""),
    ):
        if limit:
            check(value <= limit, f"{name} {value:,.5g}{unit}, recipe's limit {limit:,.5g}{unit}")
    if champion is None:
        checks.append("pass: there is no champion yet")
    elif champion.sha256 == candidate.sha256:
        check(False, f"the candidate is the champion (version {champion_version}): the same object")
    else:
        for passed, text in _against(candidate, champion, limits):
            check(passed, text)
    return Verdict(
        decision="hold" if reasons else "promote",
        reasons=reasons,
        checks=checks,
        candidate=candidate,
        champion=champion,
        champion_version=champion_version,
    )


def _against(candidate: Measured, champion: Measured, limits: GateConfig) -> list[tuple[bool, str]]:
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

"""The weight-norm ablation: both variants' curves, norms, difference with the spread over seeds, and cost per step."""

import statistics
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from flashslm.statistics import Difference, judge, t_difference
from flashslm.training.spec import TRAIN_LOSS, VALIDATION_LOSS


class VariantRun(BaseModel):
    """One pretraining run: `history` rows are the trainer's metric lines."""

    weight_norm: str  # "on" or "off"
    seed: int
    validation_loss_nats: float
    step_time_ms: float
    history: list[dict[str, float]]

    def series(self, key: str) -> list[tuple[int, float]]:
        return [(int(row["step"]), row[key]) for row in self.history if key in row]


class DivergedRun(BaseModel):
    """One whose training ended without a model."""

    weight_norm: str
    seed: int
    reason: str


class VariantSummary(BaseModel):
    """Mean over seeds; `spread_nats` is the seeds' standard deviation (absent with one seed)."""

    weight_norm: str
    seeds: list[int]
    validation_loss_nats: float
    spread_nats: float | None
    final_weight_norm: float
    final_gradient_norm: float


class Ablation(BaseModel):
    """`difference_nats` is on minus off (negative: weight normalisation is better), paired by seed.

    `difference_interval_nats` is Student's t at 95 %; there is none with fewer than two pairs of seeds.
    """

    variants: list[VariantSummary]
    difference_nats: float | None
    difference_interval_nats: tuple[float, float] | None
    differences_nats: dict[int, float] = {}  # by seed
    curves: dict[str, dict[str, list[tuple[int, float]]]]  # run label -> metric -> (step, value)
    diverged: list[DivergedRun] = []
    verdict: str


class VariantStepTimes(BaseModel):
    """What a step took under each variant, the median over its seeds; `step_time_increase` is on over off, minus 1."""

    step_time_ms: dict[str, float]
    step_time_increase: float | None


CURVES = (TRAIN_LOSS, VALIDATION_LOSS, "weight_norm", "gradient_norm")


def compare(runs: list[VariantRun], diverged: Sequence[DivergedRun] = ()) -> Ablation:
    """Compare every run with weight normalisation with its twin without (paper section 3.3, tables 4 and 12).

    A run that diverged has no loss and is in no mean; the verdict names it.
    """
    by_variant = {name: [r for r in runs if r.weight_norm == name] for name in ("on", "off")}
    summaries = {name: _summarise(name, group) for name, group in by_variant.items() if group}
    twins = {r.seed: r.validation_loss_nats for r in by_variant["off"]}
    differences = {r.seed: r.validation_loss_nats - twins[r.seed] for r in by_variant["on"] if r.seed in twins}
    found = t_difference([*differences.values()]) if differences else None
    return Ablation(
        variants=list(summaries.values()),
        difference_nats=found.value if found else None,
        difference_interval_nats=(found.low, found.high) if found and len(differences) > 1 else None,
        differences_nats=differences,
        curves={f"{r.weight_norm}, seed {r.seed}": {key: r.series(key) for key in CURVES} for r in runs},
        diverged=list(diverged),
        verdict="; ".join([*(f"{_label(r)} diverged" for r in diverged), _verdict(found, [*differences.values()])]),
    )


def step_times(runs: list[VariantRun]) -> VariantStepTimes:
    """The cost of weight normalisation in time: of the devices that trained, so apart from what was learned."""
    by_variant = {name: [r.step_time_ms for r in runs if r.weight_norm == name] for name in ("on", "off")}
    times_ms = {name: statistics.median(times) for name, times in by_variant.items() if times}
    increase = times_ms["on"] / times_ms["off"] - 1 if len(times_ms) == 2 else None
    return VariantStepTimes(step_time_ms=times_ms, step_time_increase=increase)


def _label(run: DivergedRun) -> str:
    return f"weight_norm={run.weight_norm}, seed {run.seed}"


def choose_deployed(runs: list[VariantRun], deploy: str, seed: int, diverged: Sequence[DivergedRun] = ()) -> VariantRun:
    """The run that continues: of the named variant, or of the one of lower mean loss, that with the recipe's seed.

    The means are over the seeds that all these variants have: one that diverged with a seed is not compared on others.
    Choosing the seed of lowest loss would deploy, and report, luck. Raises ValueError, which names why, if every run
    that could be deployed diverged.
    """
    allowed = [r for r in runs if r.seed == seed and deploy in ("best", r.weight_norm)]
    if not allowed:
        found = "; ".join(f"{_label(r)}: {r.reason}" for r in diverged)
        raise ValueError(f"no run with training.deploy={deploy} and seed {seed} is left: {found}")
    losses = {
        r.weight_norm: {x.seed: x.validation_loss_nats for x in runs if x.weight_norm == r.weight_norm} for r in allowed
    }
    seeds = set.intersection(*(set(by_seed) for by_seed in losses.values()))
    return min(allowed, key=lambda r: statistics.fmean(losses[r.weight_norm][seed] for seed in sorted(seeds)))


def _summarise(name: str, group: list[VariantRun]) -> VariantSummary:
    losses = [r.validation_loss_nats for r in group]
    return VariantSummary(
        weight_norm=name,
        seeds=[r.seed for r in group],
        validation_loss_nats=statistics.fmean(losses),
        spread_nats=statistics.stdev(losses) if len(losses) > 1 else None,
        final_weight_norm=statistics.fmean(r.series("weight_norm")[-1][1] for r in group),
        final_gradient_norm=statistics.fmean(r.series("gradient_norm")[-1][1] for r in group),
    )


def _verdict(found: Difference | None, differences: Sequence[float]) -> str:
    """An interval over the seeds that holds zero cannot tell; one seed decides nothing."""
    if found is None:
        return "only one variant was trained: nothing to compare"
    if found.items < 2:
        better = "on" if found.value < 0 else "off"
        return f"weight_norm={better} is {abs(found.value):.4f} nats better with one seed: no spread, no claim"
    interval = f"95 % interval {found.low:+.4f} to {found.high:+.4f} over {found.items} seeds"
    outcome = judge(found.low, found.high, higher_is_better=False)
    if outcome == "cannot tell":
        agree = min(differences) > 0 or max(differences) < 0
        agreed = ", all of the same sign; more seeds would narrow it" if agree else ""
        return f"cannot tell: difference {found.value:+.4f} nats, {interval}{agreed}"
    return f"weight_norm={'on' if outcome == 'better' else 'off'} is better by {abs(found.value):.4f} nats, {interval}"


def load_run(training: dict[str, Any], history: list[dict[str, float]], step_time_ms: float) -> VariantRun:
    """A run from its checkpoint's training.json and metrics.jsonl, and the step time in its manifest."""
    return VariantRun(
        weight_norm=training["weight_norm"],
        seed=training["seed"],
        validation_loss_nats=training["validation_loss_nats"],
        step_time_ms=step_time_ms,
        history=history,
    )

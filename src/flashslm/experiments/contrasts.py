"""What an experiment's cells say: means over seeds, differences paired by seed, how short runs rank for long ones."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations
from typing import Any, NamedTuple

from flashslm.experiments.cells import CellResult
from flashslm.statistics import judge, rank_correlation, t_difference

LOWER_IS_BETTER = ("perplexity", "loss_nats", "bits_per_byte")
MIN_RANKED = 3  # models whose order can agree or not


class Group(NamedTuple):
    """What the seeds of a cell have in common."""

    model: str
    weight_norm: str
    meta_tokens: int
    steps: int


Groups = dict[Group, dict[int, dict[str, float]]]  # metrics by seed


def grouped(results: Sequence[CellResult]) -> Groups:
    """The metrics of all cells that did not fail, in the order in which groups first come."""
    groups: Groups = defaultdict(dict)
    for result in results:
        if not result.failed:
            variant = result.cell.variant
            groups[Group(*(variant[name] for name in Group._fields))][result.cell.seed] = result.metrics
    return dict(groups)


def means(groups: Groups) -> list[dict[str, Any]]:
    """For each group and metric the mean over seeds and their standard deviation (None with one seed)."""
    return [group._asdict() | {"seeds": sorted(seeds), "metrics": _means(seeds)} for group, seeds in groups.items()]


def _means(seeds: dict[int, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    found = {}
    for metric in next(iter(seeds.values())):
        values = [metrics[metric] for metrics in seeds.values()]
        spread = statistics.stdev(values) if len(values) > 1 else None
        found[metric] = {"mean": statistics.fmean(values), "spread": spread}
    return found


def differences(groups: Groups, baseline: str) -> list[dict[str, Any]]:
    """Each model less the baseline, each run with weight normalisation less that without, each number of meta tokens
    less the smallest: the rest being equal, paired by seed, with Student's t at 95 %.
    """
    fewest = min((group.meta_tokens for group in groups), default=0)
    references: dict[str, Callable[[Group], Group]] = {
        "model": lambda group: group._replace(model=baseline),
        "weight_norm": lambda group: group._replace(weight_norm="off"),
        "meta_tokens": lambda group: group._replace(meta_tokens=fewest),
    }
    return [
        found
        for factor, reference_of in references.items()
        for group, seeds in groups.items()
        if (reference := reference_of(group)) != group
        for found in _differences_from(groups, group, seeds, reference, factor)
    ]


def _differences_from(
    groups: Groups, group: Group, seeds: dict[int, dict[str, float]], reference: Group, factor: str
) -> Iterator[dict[str, Any]]:
    others = groups.get(reference, {})
    paired = sorted(seeds.keys() & others.keys())
    for metric in seeds[paired[0]] if paired else ():
        by_seed = [seeds[seed][metric] - others[seed][metric] for seed in paired]
        found = t_difference(by_seed)
        known = {"low": found.low, "high": found.high, "p_value": found.p_value} if found.items > 1 else {}
        better = not metric.startswith(LOWER_IS_BETTER)
        outcome = judge(found.low, found.high, higher_is_better=better)
        yield group._asdict() | {
            "factor": factor,
            "reference": getattr(reference, factor),
            "metric": metric,
            "difference": found.value,
            **known,
            "by_seed": dict(zip(paired, by_seed, strict=True)),
            "is": outcome,
        }


def rankings(groups: Groups) -> list[dict[str, Any]]:
    """How each budget ranks models for each longer one: Spearman's correlation with its bootstrap interval.

    Over models and variants that both budgets have, by the means over those seeds that all of these have (a record in
    the midst of a seed has it of some models only); of every metric that differs between them.
    """
    budgets = sorted({group.steps for group in groups})
    return [found for steps, longer in combinations(budgets, 2) for found in _rankings(groups, steps, longer)]


def _rankings(groups: Groups, steps: int, longer: int) -> Iterator[dict[str, Any]]:
    pairs = [
        (seeds, groups[group._replace(steps=longer)])
        for group, seeds in groups.items()
        if group.steps == steps and group._replace(steps=longer) in groups
    ]
    if len(pairs) < MIN_RANKED:
        return
    common = sorted(set.intersection(*(set(seeds) for pair in pairs for seeds in pair)))
    for metric in pairs[0][0][common[0]] if common else ():
        short, long = (
            [statistics.fmean(seeds[seed][metric] for seed in common) for seeds in side]
            for side in zip(*pairs, strict=True)
        )
        if len(set(short)) > 1 and len(set(long)) > 1:
            found = rank_correlation(short, long)
            yield {"steps": steps, "longer": longer, "seeds": common, "metric": metric, **found._asdict()}

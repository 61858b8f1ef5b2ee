"""What lm-evaluation-harness returns, as metrics of tasks and item by item. No torch and no lm_eval here."""

import math
from collections.abc import Iterator
from typing import Any

from flashslm.evaluation.items import MetricItems, identity
from flashslm.evaluation.task_metrics import ASKED

_SAME_QUESTION = ("doc_hash", "prompt_hash")  # of a sample: with other shots or another prompt it is another question


def task_results(outcome: dict[str, Any]) -> dict[str, dict[str, float]]:
    """By task and group: each metric under its name, its standard error under the name with `_stderr`, and what was
    asked. A filter's name is appended to that of its metrics; what is not a number (alias, "N/A") is left out.
    """
    found = {}
    for task, values in outcome["results"].items():
        asked = {"samples": outcome["n-samples"].get(task, {}).get("effective")}
        asked |= {"version": outcome["versions"].get(task), "shots": outcome["n-shot"].get(task)}
        numbers = {key: float(value) for key, value in asked.items() if isinstance(value, int | float)}
        for key, value in values.items():
            if isinstance(value, int | float) and math.isfinite(value) and key not in ASKED and not _absent(key, value):
                numbers[metric_name(key)] = float(value)
        found[task] = numbers
    return found


def _absent(key: str, value: float) -> bool:
    """Whether a value is not a metric: a number of samples, or RULER's -1 for a length that was not asked for."""
    return key == "sample_len" or (value == -1 and key.partition(",")[0].isdigit())


def metric_name(key: str) -> str:
    """The harness's `acc,none` as `acc`, `exact_match_stderr,strict` as `exact_match_strict_stderr`."""
    metric, _, name = key.partition(",")
    base, is_error = metric.removesuffix("_stderr"), metric.endswith("_stderr")
    return base + ("" if name in ("", "none") else f"_{name}") + ("_stderr" if is_error else "")


def task_items(outcome: dict[str, Any], task: str) -> dict[str, MetricItems]:
    """The metrics of a task that are means over its documents, or such a mean's power, document by document.

    Others (F1 over a whole set, a median) have no items: of two models only their values can be compared.
    """
    found = {}
    for key, value in outcome["results"][task].items():
        metric, _, name = key.partition(",")
        if not name or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        of_filter = (s for s in outcome["samples"][task] if s["filter"] == name and metric in s)
        samples = [s for s in of_filter if not _absent(key, s[metric])]
        samples.sort(key=lambda sample: sample["doc_id"])
        sha256 = identity(*(str(sample[key]).encode() for sample in samples for key in _SAME_QUESTION))
        higher = bool(outcome["higher_is_better"].get(task, {}).get(metric, True))
        for candidate in _candidates([sample[metric] for sample in samples]):
            if math.isclose(candidate.value, value, rel_tol=1e-9, abs_tol=1e-12):
                update = {"higher_is_better": higher, "items_sha256": sha256}
                found[metric_name(key)] = candidate.model_copy(update=update)
                break
    return found


def _candidates(values: list[Any]) -> Iterator[MetricItems]:
    """What the harness may have made of these: a mean, perplexity, or nats per word or byte (pairs of sum and size)."""
    if values and all(isinstance(value, int | float) for value in values):
        plain = MetricItems(totals=tuple(map(float, values)), items_sha256="")
        negative = tuple(-total for total in plain.totals)
        yield from (plain, plain.model_copy(update={"totals": negative, "scale": "exponential"}))
    elif values and all(isinstance(value, tuple | list) and len(value) == 2 for value in values):
        nats, sizes = (tuple(map(float, column)) for column in zip(*values, strict=True))
        rolling = MetricItems(totals=tuple(-x for x in nats), weights=sizes, scale="exponential", items_sha256="")
        bits = {"totals": tuple(-x / math.log(2) for x in nats), "scale": "linear"}
        yield from (rolling, rolling.model_copy(update=bits))

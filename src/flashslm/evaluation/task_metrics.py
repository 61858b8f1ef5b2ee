"""What an lm-eval task asks for and what its results hold. Reports, model cards and commands read it too."""

from typing import Any

DEFAULT_NEW_TOKENS = 256  # that a task generates where it says nothing: the harness's own
LOWER_IS_BETTER = ("bits_per_byte", "brier_score", "ter")  # in lm_eval's registry, beside the perplexities
ASKED = ("samples", "version", "shots")  # beside the metrics and their standard errors


def is_metric(name: str) -> bool:
    """Whether a key of a task's results is a metric, not its standard error or what was asked."""
    return name not in ASKED and not name.endswith("_stderr")


def higher_is_better(name: str) -> bool:
    """Of a metric whose items, which know it, are not there; a filter's name may follow the metric's."""
    return "perplexity" not in name and not any(f"{name}_".startswith(f"{lower}_") for lower in LOWER_IS_BETTER)


def task_rows(tasks: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every metric of every lm-eval task as the harness shows it: version, shots, value, standard error."""
    return [
        {
            "task": task,
            "metric": metric,
            "value": value,
            "error": metrics.get(f"{metric}_stderr"),
            **{name: f"{metrics[name]:,.10g}" if name in metrics else "" for name in ASKED},
        }
        for task, metrics in tasks.items()
        for metric, value in metrics.items()
        if is_metric(metric)
    ]

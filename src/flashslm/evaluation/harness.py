"""Tasks of lm-evaluation-harness on a HybridLM."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flashslm.config import EvaluationConfig
from flashslm.evaluation import task_presets
from flashslm.evaluation.harness_host import lean_harness
from flashslm.evaluation.items import MetricItems
from flashslm.evaluation.request_encoding import TextEnds
from flashslm.evaluation.task_results import task_items, task_results
from flashslm.evaluation.tasks import find_tasks, specifications
from flashslm.models.hybrid import HybridLM

BOOTSTRAPS = 1000  # of metrics without a formula for their standard error


class Asked(NamedTuple):
    """What is run: tasks, presets and task files, `limit` documents of each (None: all).

    `include_path` is a directory with more task files, `task_data` one of sets in place of the hub. Tasks that run what
    the model writes are refused unless `run_generated_code` is true.
    """

    tasks: Sequence[str]
    limit: int | None = None
    include_path: str | Path | None = None
    task_data: str = ""
    run_generated_code: bool = False

    @classmethod
    def of(cls, config: EvaluationConfig) -> "Asked":
        """What a recipe asks for."""
        tasks, limit = config.lm_eval_tasks, config.lm_eval_limit or None
        return cls(tasks, limit, task_data=config.task_data, run_generated_code=config.run_generated_code)


def run_tasks(
    model: HybridLM, tokenizer: Any, asked: Asked, ends: TextEnds | None = None
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, MetricItems]]]:
    """Metrics of every task, group and averaged preset with their standard errors; and item by item.

    `samples` is how many documents there were, `version` the task's, `shots` how many examples a prompt has. A filter's
    name is appended to its metrics. `ends` is where texts begin and end, None: at the tokenizer's end-of-text token.
    Raises ValueError for a task that lm_eval does not know or cannot load. lm_eval seeds the global generators of
    random, numpy and torch.
    """
    from flashslm.evaluation.lm_eval_adapter import HybridLMAdapter

    adapter = HybridLMAdapter(model, tokenizer, ends=ends)
    facts = {"tokenizer": tokenizer.name_or_path, "max_seq_lengths": task_presets.ruler_lengths(adapter.max_length)}
    outcome = harness_outcome(adapter, asked, facts)
    items = {task: task_items(outcome, task) for task in outcome["samples"]}
    results = task_results(outcome)
    for task, by_metric in items.items():
        _add_missing_errors(results[task], by_metric)
    return results | task_presets.averages(asked.tasks, results), items


def harness_outcome(lm: Any, asked: Asked, facts: dict[str, Any] | None = None) -> dict[str, Any]:
    """What lm_eval returns for `lm`, which may be any of its models, samples included.

    `facts` are for tasks that make their own text. Raises as `run_tasks`.
    """
    import lm_eval

    if asked.run_generated_code:
        os.environ["HF_ALLOW_CODE_EVAL"] = "1"  # else the metric refuses
    with lean_harness():
        outcome: dict[str, Any] = lm_eval.simple_evaluate(
            lm,
            tasks=specifications(asked.tasks),
            limit=asked.limit,
            task_manager=find_tasks(asked.tasks, asked.include_path, asked.task_data, facts),
            bootstrap_iters=BOOTSTRAPS,
            log_samples=True,
            confirm_run_unsafe_code=asked.run_generated_code,
        )
    return outcome


def _add_missing_errors(results: dict[str, float], items: dict[str, MetricItems]) -> None:
    """Of means for which the harness has no formula."""
    for metric, of in items.items():
        if (error := of.standard_error) is not None:
            results.setdefault(f"{metric}_stderr", error)

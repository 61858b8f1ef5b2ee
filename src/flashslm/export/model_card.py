"""The README of an export as the hub's model card: metadata that the hub reads, and what a person needs to know.

An export is written before its model is evaluated, and its bytes are the weights' alone; results and latencies, which
are of a run and a device, are added to a copy when the run is over.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from flashslm.evaluation.task_metrics import is_metric

TASK = "text-generation"
TAGS = ("hybrid", "small-language-model", "nemotron-flash", "custom_code")
METRICS = {
    "test/perplexity": ("perplexity", "Perplexity per token"),
    "test/full_perplexity": ("perplexity", "Perplexity per token, weights not rounded to 8 bits"),
    "test/bits_per_byte": ("bits_per_byte", "Bits per byte"),
}


def with_header(body: str, license_id: str) -> str:
    """The card of an export whose results are not known yet."""
    data = ModelCardData(license=license_id, library_name="transformers", pipeline_tag=TASK, tags=list(TAGS))
    return f"---\n{data.to_yaml()}\n---\n\n{body}"


def training_data(facts: Mapping[str, Any] | None) -> str:
    """A sentence on a data set by its summary."""
    if not facts or "source" not in facts:
        return "Not recorded with this export."
    counts = {"documents": "documents", "train_tokens": "training tokens", "bytes": "bytes of text"}
    known = [f"{facts[key]:,} {name}" for key, name in counts.items() if isinstance(facts.get(key), int)]
    return f"{facts['source']}: {', '.join(known)}, duplicates dropped." if known else f"{facts['source']}."


def completed(
    card: str,
    name: str,
    evaluation: Mapping[str, Any],
    latency: Mapping[str, Any],
    data_source: str,
    hub_dataset: str = "",
) -> str:
    """The card of an export with its results, each with its standard error where it has one, and its latency.

    `latency` has latency_ms, latency_p90_ms, context, batch and device (a name); `evaluation` is evaluation.json.
    """
    made = ModelCard(card, ignore_metadata_errors=True)
    assert isinstance(made.data, ModelCardData)
    results = list(_results(evaluation, data_source, hub_dataset))
    made.data.model_name, made.data.eval_results = name, results
    if hub_dataset:
        made.data.datasets = [hub_dataset]
    made.text = f"{made.text.rstrip()}\n\n{_results_section(results)}\n{_latency_section(latency)}"
    return str(made)


def _results(evaluation: Mapping[str, Any], source: str, hub_dataset: str) -> Iterator[EvalResult]:
    context = f", {evaluation['test/context']} tokens of context" if "test/context" in evaluation else ""
    held_out = {"dataset_type": hub_dataset or "held-out", "dataset_name": f"{source}, test split{context}"}
    for key, (metric, label) in METRICS.items():
        if key in evaluation:
            yield _result(held_out, metric, label, evaluation[key], evaluation.get(f"{key}_stderr"))
    for needle in evaluation["needle"]:
        name = f"needle in {needle['length']} tokens of that text, {needle['samples']} samples"
        # The hub puts results of one type and configuration together, under the first one's name.
        where = {"dataset_type": "needle", "dataset_config": f"{needle['length']} tokens", "dataset_name": name}
        yield _result(where, "accuracy", "Needles found", needle["accuracy"], needle.get("accuracy_stderr"))
    for task, metrics in evaluation["tasks"].items():
        for metric, value in metrics.items():
            if is_metric(metric):
                where = {"dataset_type": task, "dataset_name": task}
                yield _result(where, metric, metric, value, metrics.get(f"{metric}_stderr"))


def _result(where: Mapping[str, str], metric: str, label: str, value: float, error: float | None) -> EvalResult:
    arguments = {"standard_error": error} if error else None  # 0: of none or all right answers it says nothing
    return EvalResult(
        task_type=TASK,
        dataset_type=where["dataset_type"],
        dataset_name=where["dataset_name"],
        dataset_config=where.get("dataset_config"),
        metric_type=metric,
        metric_name=label,
        metric_value=value,
        metric_args=arguments,
    )


def _results_section(results: Sequence[EvalResult]) -> str:
    rows = [f"| {r.dataset_name} | {r.metric_name} | {_value(r)} |" for r in results]
    return "\n".join(["## Results", "", "| data | metric | value |", "|---|---|---|", *rows, ""])


def _value(result: EvalResult) -> str:
    """With its standard error; a perplexity of thousands needs no ten-thousandths."""
    decimals = 4 if result.metric_value < 100 else 1
    error = f" ± {result.metric_args['standard_error']:.{decimals}f}" if result.metric_args else ""
    return f"{result.metric_value:.{decimals}f}{error}"


def _latency_section(latency: Mapping[str, Any]) -> str:
    row = f"| {latency['device']} | {latency['context']} | {latency['batch']} "
    row += f"| {latency['latency_ms']:.4g} | {latency['latency_p90_ms']:.4g} |"
    head = "| device | context | batch | ms per token | 90th percentile |"
    return "\n".join(["## Latency", "", head, "|---|---|---|---|---|", row, ""])

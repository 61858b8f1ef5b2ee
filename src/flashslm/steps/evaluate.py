"""evaluate: test perplexity, bits per byte, needle retrieval, and the recipe's lm-eval tasks."""

from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer

from flashslm.config import EvaluationConfig, RunConfig, WeightFormat
from flashslm.data.loader import TokenLoader
from flashslm.data.shards import SplitReader
from flashslm.evaluation import items as metric_items
from flashslm.evaluation.items import ITEMS_FILE, MetricItems
from flashslm.evaluation.needle import evaluate_needle
from flashslm.evaluation.perplexity import Reading, evaluate_perplexity, sample_documents
from flashslm.evaluation.recall import evaluate_recall
from flashslm.evaluation.samples import continue_documents
from flashslm.evaluation.task_files import check_unchanged
from flashslm.evaluation.tasks import not_decontaminated
from flashslm.hardware import pick_device
from flashslm.inference.int8_model import as_served
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_model
from flashslm.steps.context import StepContext

HEADLINE = ("test/loss_nats", "test/perplexity", "test/bits_per_byte")
BEFORE_ROUNDING = "test/full_perplexity"  # of weights that are served in 8 bits


class Evaluation(NamedTuple):
    """`results`: one flat dictionary plus `needle`, `samples` and `tasks`; `items`: metrics by name, item by item."""

    results: dict[str, Any]
    items: dict[str, MetricItems]

    def files(self) -> dict[str, Any]:
        return {"evaluation.json": self.results, ITEMS_FILE: metric_items.dump(self.items)}

    def headline(self) -> dict[str, float]:
        return {key: self.results[key] for key in (*HEADLINE, BEFORE_ROUNDING) if key in self.results}

    def beside_full(self, perplexity: float) -> "Evaluation":
        """With the perplexity of the same weights before they were rounded."""
        loss = self.results["test/perplexity"] / perplexity - 1
        return self._replace(results=self.results | {BEFORE_ROUNDING: perplexity, "test/rounding_loss": loss})


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `evaluation`: evaluation.json and items.json; perplexity and the data's digest travel in the manifest for
    the gate.
    """
    model = for_evaluation(load_model(context.fetch("chosen"), device=pick_device("auto")), context.config)
    facts = context.manifest("dataset").metadata
    with context.scratch() as scratch:
        dataset = context.store.get_part(context.manifest("dataset"), ("test/", "tokenizer/"), scratch)
        found = evaluate_served(model, context.config.profiling.weights, dataset, context.config)
    results = found.results
    results["unigram_entropy_nats"] = facts["unigram_entropy_nats"]
    context.publish_json(
        "evaluation", found.files(), found.headline() | {"dataset_sha256": context.manifest("dataset").sha256}
    )
    return {
        **{k: v for k, v in results.items() if isinstance(v, int | float)},
        "summary": f"test {perplexity_text(results)} ({results['test/loss_nats']:.3f} nats; unigram "
        f"entropy {facts['unigram_entropy_nats']:.3f}), {results['test/bits_per_byte']:.3f} bits/byte",
    }


def for_evaluation(model: HybridLM, recipe: RunConfig) -> HybridLM:
    """The model in fp32 on a CPU; on a GPU in the export's precision, which is what is deployed and fused forms take.

    Its parameters are replaced.
    """
    return model.cast(getattr(torch, precision(model.embedding.weight.device.type, recipe))).eval()


def precision(device_type: str, recipe: RunConfig) -> str:
    """The dtype of an evaluation on a device."""
    return recipe.export.dtype if device_type == "cuda" else "float32"


def perplexity_text(results: dict[str, Any]) -> str:
    """With its standard error, where there is one."""
    error = results.get("test/perplexity_stderr")
    text = f"perplexity {results['test/perplexity']:.2f}" + (f" ± {error:.2f}" if error is not None else "")
    loss = results.get("test/rounding_loss")
    return text + (f" (weights in 8 bits: {loss:+.2%})" if loss is not None else "")


def evaluate_served(model: HybridLM, weights: WeightFormat, dataset: Path, recipe: RunConfig) -> Evaluation:
    """`evaluate_model` of the weights as they are served, to which the model is changed in place.

    Of rounded ones the results also have the perplexity before, on the same documents, and by how much it rose.
    """
    if weights == "full":
        return evaluate_model(model, dataset, recipe)
    full = full_perplexity(model, dataset, recipe)
    return evaluate_model(as_served(model, weights), dataset, recipe).beside_full(full)


def full_perplexity(model: HybridLM, dataset: Path, recipe: RunConfig) -> float:
    """On the test split, of a model that is not rounded yet."""
    return _test_perplexity(model, dataset, recipe)[1]["perplexity"].value


def evaluate_model(model: HybridLM, dataset: Path, recipe: RunConfig) -> Evaluation:
    """All that the recipe asks for, on the test split."""
    config = recipe.evaluation
    results, items = evaluate_on_test_split(model, dataset, recipe)
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
    samples = continue_documents(model, _test_loader(dataset, recipe), tokenizer)
    tasks, task_items = _lm_eval(model, dataset, config) if config.lm_eval_tasks else ({}, {})
    items |= {f"{task}/{name}": of for task, found in task_items.items() for name, of in found.items()}
    results |= {"samples": samples, "tasks": tasks}
    if tasks:
        results["not_decontaminated"] = not_decontaminated(config)
    return Evaluation(results, items)


def evaluate_on_test_split(model: HybridLM, dataset: Path, recipe: RunConfig) -> Evaluation:
    """Perplexity, needles and recall: what needs no text but the data set's own."""
    config, seed = recipe.evaluation, recipe.seed
    facts, by_document = _test_perplexity(model, dataset, recipe)
    items = {f"test/{name}": of for name, of in by_document.items()}
    loader = _test_loader(dataset, recipe)
    needles = []
    for length in config.needle_lengths:
        asked, by_needle = evaluate_needle(model, loader, length, config.needle_samples, seed)
        needles.append(asked | metric_items.numbers(by_needle))
        items |= {f"test/needle_{name}_{length}": of for name, of in by_needle.items()}
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
    recalled = []
    for task, length in product(config.recall_tasks, config.recall_lengths):
        found, by_text = evaluate_recall(model, loader, tokenizer, task, length, config.recall_samples, seed)
        recalled.append(found | metric_items.numbers(by_text))
        items |= {f"test/recall_{task}_{name}_{length}": of for name, of in by_text.items()}
    results: dict[str, Any] = {f"test/{name}": value for name, value in facts.items()} | metric_items.numbers(items)
    results["dtype"] = str(model.embedding.weight.dtype).removeprefix("torch.")
    return Evaluation(results | {"needle": needles, "recall": recalled}, items)


def _test_perplexity(
    model: HybridLM, dataset: Path, recipe: RunConfig
) -> tuple[dict[str, int], dict[str, MetricItems]]:
    config = recipe.evaluation
    documents = sample_documents(SplitReader(dataset, "test"), config.max_tokens, recipe.seed)
    reading = Reading(config.sequence_length, config.stride or config.sequence_length, config.batch_size)
    return evaluate_perplexity(model, documents, reading)


def _test_loader(dataset: Path, recipe: RunConfig) -> TokenLoader:
    config = recipe.evaluation
    return TokenLoader(dataset, "test", config.sequence_length, config.batch_size, recipe.seed)


def _lm_eval(
    model: HybridLM, dataset: Path, config: EvaluationConfig
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, MetricItems]]]:
    from flashslm.data.tokenizer import load_tokenizer
    from flashslm.evaluation.harness import Asked, run_tasks

    check_unchanged(config)
    return run_tasks(model, load_tokenizer(dataset / "tokenizer"), Asked.of(config))

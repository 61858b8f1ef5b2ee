"""evaluate: test perplexity, bits per byte, needle retrieval, and the recipe's lm-eval tasks."""

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from flashslm.config import EvaluationConfig, RunConfig
from flashslm.data.loader import TokenLoader
from flashslm.evaluation.needle import evaluate_needle
from flashslm.evaluation.perplexity import evaluate_perplexity
from flashslm.evaluation.samples import continue_documents
from flashslm.evaluation.task_files import check_unchanged
from flashslm.hardware import pick_device
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_model
from flashslm.steps.context import StepContext

HEADLINE = ("test/loss_nats", "test/perplexity", "test/bits_per_byte")


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `evaluation`: evaluation.json; perplexity and the data's digest travel in the manifest for the gate."""
    dataset = context.fetch("dataset")
    model = load_model(context.fetch("chosen"), device=pick_device("auto"))
    facts = context.manifest("dataset").metadata
    results = evaluate_model(model, dataset, context.config)
    results["unigram_entropy_nats"] = facts["unigram_entropy_nats"]
    headline = {k: results[k] for k in HEADLINE}
    context.publish_json(
        "evaluation",
        {"evaluation.json": results},
        headline | {"dataset_sha256": context.manifest("dataset").sha256},
    )
    return {
        **{k: v for k, v in results.items() if isinstance(v, int | float)},
        "summary": f"test perplexity {results['test/perplexity']:.2f} ({results['test/loss_nats']:.3f} nats; unigram "
        f"entropy {facts['unigram_entropy_nats']:.3f}), {results['test/bits_per_byte']:.3f} bits/byte",
    }


def evaluate_model(model: HybridLM, dataset: Path, recipe: RunConfig) -> dict[str, Any]:
    """All that the recipe asks for: one flat dict, with `needle`, `samples` and `tasks`; documents as in training."""
    config, seed = recipe.evaluation, recipe.seed
    loader = TokenLoader(dataset, "test", config.sequence_length, config.batch_size, seed)
    isolated = recipe.training.isolate_documents
    results: dict[str, Any] = dict(evaluate_perplexity(model, loader, config.max_tokens, isolated))
    needles = [evaluate_needle(model, loader, length, config.needle_samples, seed) for length in config.needle_lengths]
    results["needle"] = needles
    for needle in needles:
        results[f"needle_accuracy_{needle['length']}"] = needle["accuracy"]
    tokenizer = Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))
    results["samples"] = continue_documents(model, loader, tokenizer)
    results["tasks"] = _lm_eval(model, dataset, config) if config.lm_eval_tasks else {}
    return results


def _lm_eval(model: HybridLM, dataset: Path, config: EvaluationConfig) -> dict[str, Any]:
    from flashslm.data.tokenizer import load_tokenizer
    from flashslm.evaluation.lm_eval_adapter import run_tasks

    check_unchanged(config)
    tokenizer = load_tokenizer(dataset / "tokenizer")
    return run_tasks(model, tokenizer, list(config.lm_eval_tasks), config.lm_eval_limit or None)

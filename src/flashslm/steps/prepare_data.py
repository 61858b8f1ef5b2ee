"""prepare_data: text to tokenizer and token shards."""

from typing import Any

from flashslm.data.prepare import prepare_dataset
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `dataset`: tokenizer/, train/, validation/, test/ and dataset.json."""
    config = context.config
    with context.scratch() as directory:
        summary = prepare_dataset(config.data, config.seed, directory, s3_client=context.store.client)
        facts = summary.model_dump(mode="json")
        manifest = context.publish("dataset", directory, facts)
    context.mlflow_run.log_dataset(config.data.source, manifest.uri, manifest.sha256)
    return {
        "train_tokens": summary.train_tokens,
        "validation_tokens": summary.validation_tokens,
        "test_tokens": summary.test_tokens,
        "vocab_size": summary.vocab_size,
        "bytes_per_token": summary.bytes_per_token,
        "unigram_entropy_nats": summary.unigram_entropy_nats,
        "summary": f"{summary.train_tokens:,} train tokens from {summary.documents:,} documents, "
        f"vocabulary {summary.vocab_size:,}, {summary.bytes_per_token:.2f} bytes/token",
    }

"""prepare_new_data: the source's documents that the champion has not seen, by digest, in the champion's tokens."""

from pathlib import Path
from typing import Any

from flashslm.config import RunConfig
from flashslm.data.duplicates import DIGESTS_FILE
from flashslm.data.prepare import prepare_dataset
from flashslm.data.summary import DatasetSummary, UnusableText
from flashslm.data.unseen import UnseenText, seen_digests
from flashslm.steps.context import StepContext
from flashslm.steps.fetch_champion import champions_data


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `dataset`; the result's `decision` is "retrain", or "hold" where there is not enough that is new.

    A data set that is not enough holds no more than why (metadata `reason`): its documents stay new.
    """
    config = context.config
    with context.scratch() as directory, context.scratch() as known:
        tokenizer, seen = champions_view(context, known)
        own = config.data.model_copy(update={"tokenizer": str(tokenizer)})
        text = UnseenText(own, config.seed, seen, context.store.client)
        try:
            summary = prepare_dataset(own, config.seed, directory, documents=text, bad_rows=text.bad_rows)
            reason = too_little(summary, config)
        except UnusableText as error:
            summary, reason = None, str(error) if text.documents > text.seen_documents else ""
        counts = {"read_documents": text.documents, "seen_documents": text.seen_documents}
        if summary is None or reason:
            return _hold(context, counts, reason or f"nothing new: all {text.documents:,} documents were seen before")
        manifest = context.publish("dataset", directory, summary.model_dump(mode="json") | counts)
    context.mlflow_run.log_dataset(config.data.source, manifest.uri, manifest.sha256)
    return counts | {
        "decision": "retrain",
        "train_tokens": summary.train_tokens,
        "validation_tokens": summary.validation_tokens,
        "test_tokens": summary.test_tokens,
        "new_bytes": summary.bytes,
        "summary": f"{summary.documents:,} new documents, {summary.bytes / 1e6:.2f} MB ({text.seen_documents:,} of "
        f"{text.documents:,} were seen before)",
    }


def champions_view(context: StepContext, directory: Path) -> tuple[Path, set[bytes]]:
    """The champion's tokenizer and the digests of what it has seen, without the shards."""
    data, seen = champions_data(context), set()
    for index, manifest in enumerate(data):
        seen |= seen_digests(context.store.get_part(manifest, (DIGESTS_FILE,), directory / str(index)))
    return context.store.get_part(data[0], ("tokenizer/",), directory) / "tokenizer", seen


def too_little(summary: DatasetSummary, config: RunConfig) -> str:
    """Why this data set is not worth a training run; "" if it is."""
    if summary.bytes < config.retraining.min_new_bytes:
        return (
            f"only {summary.bytes:,} new bytes in {summary.documents:,} documents, retraining.min_new_bytes is "
            f"{config.retraining.min_new_bytes:,}"
        )
    evaluated = max(config.evaluation.sequence_length, *config.evaluation.needle_lengths, 0)
    for split, tokens, needed in (
        ("train", summary.train_tokens, config.training.sequence_length),
        ("validation", summary.validation_tokens, config.training.sequence_length),
        ("test", summary.test_tokens, evaluated),
    ):
        if tokens <= needed:
            return f"only {tokens:,} new {split} tokens, one window or needle text needs {needed + 1:,}"
    return ""


def _hold(context: StepContext, counts: dict[str, int], reason: str) -> dict[str, Any]:
    context.publish_json("dataset", {"new.json": counts | {"reason": reason}}, counts | {"reason": reason})
    return counts | {"decision": "hold", "summary": reason}

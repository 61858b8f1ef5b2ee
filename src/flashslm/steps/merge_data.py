"""merge_data: the pieces of all workers to one data set."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flashslm.data.merge import MERGED_FILES, PieceFiles, merge_pieces
from flashslm.data.summary import DatasetSummary
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.context import StepContext


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `dataset`: tokenizer/, train/, validation/, test/, the documents' digests and dataset.json.

    Every piece is verified; its token files are copied by the store and do not pass through here.
    """
    pieces = _pieces(context)
    with context.scratch() as directory, context.scratch() as scratch:
        files = [_fetch(context, piece, scratch / str(number)) for number, piece in enumerate(pieces)]
        tokenizer = context.fetch("plan") / "tokenizer"
        merged = merge_pieces(context.config.data, files, tokenizer, directory, scratch, _say(context))
        borrowed = {file.target: (pieces[file.piece], file.source) for file in merged.token_files}
        facts = merged.summary.model_dump(mode="json")
        context.outputs["dataset"] = context.store.put_tree(directory, "dataset", facts, borrowed)
    manifest = context.outputs["dataset"]
    context.mlflow_run.log_dataset(context.config.data.source, manifest.uri, manifest.sha256)
    return result_of(merged.summary)


def result_of(summary: DatasetSummary) -> dict[str, Any]:
    """What the step says of a data set."""
    return {
        "train_tokens": summary.train_tokens,
        "validation_tokens": summary.validation_tokens,
        "test_tokens": summary.test_tokens,
        "vocab_size": summary.vocab_size,
        "bytes_per_token": summary.bytes_per_token,
        "unigram_entropy_nats": summary.unigram_entropy_nats,
        "summary": f"{summary.train_tokens:,} train tokens from {summary.documents:,} documents, "
        f"vocabulary {summary.vocab_size:,}, {summary.bytes_per_token:.2f} bytes/token in validation",
    }


def _pieces(context: StepContext) -> Sequence[Manifest]:
    """The trees of all pieces, in the order of the plan. Raises ValueError where one is missing."""
    made: dict[str, Any] = {}
    for workers_output in context.manifests("pieces"):
        made |= context.read_json_of(workers_output, "pieces.json")
    planned = context.manifest("plan").metadata["pieces"]
    missing = [number for number in range(planned) if str(number) not in made]
    if missing:
        raise ValueError(f"piece {missing[0]} of {planned} is not among the workers' pieces: run prepare_data again")
    return [Manifest.model_validate(made[str(number)]) for number in range(planned)]


def _fetch(context: StepContext, piece: Manifest, directory: Path) -> PieceFiles:
    context.store.verify_tree(piece)
    context.store.get_part(piece, MERGED_FILES, directory)

    def fetch(split: str) -> None:
        context.store.get_part(piece, (f"{split}/",), directory)

    return PieceFiles(directory, fetch)


def _say(context: StepContext) -> Callable[[str], None]:
    return lambda sentence: context.events.emit("progress", sentence)

"""What a prepared data set is in numbers, and when it is none."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from flashslm.config import DataConfig
from flashslm.data.bad_rows import BadRow, BadRows
from flashslm.data.documents import SPLITS
from flashslm.data.shards import SplitIndex
from flashslm.data.sources import describe_source

DATASET_FILE = "dataset.json"


class UnusableText(ValueError):
    """The text is too little to make a data set."""


class DatasetSummary(BaseModel):
    """dataset.json. Bytes are UTF-8 after de-duplication; tokens count the end-of-document tokens."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str
    documents: int
    duplicates_dropped: int
    bytes: int
    train_documents: int
    train_bytes: int
    train_tokens: int
    validation_documents: int
    validation_bytes: int
    validation_tokens: int
    test_documents: int
    test_bytes: int
    test_tokens: int
    vocab_size: int
    end_of_document_id: int
    bytes_per_token: float  # validation text bytes per predicted token
    unigram_entropy_nats: float  # of the test split's predicted tokens: the loss of the best context-free model of them
    near_duplicates_dropped: int = 0
    contaminated_dropped: int = 0
    bad_rows: int = 0
    bad_row_samples: tuple[BadRow, ...] = ()

    def write(self, directory: Path) -> None:
        text = self.model_dump_json(indent=1, exclude_defaults=True)
        (directory / DATASET_FILE).write_text(text, encoding="utf-8")


def refuse_unusable(documents: Mapping[str, int], config: DataConfig) -> None:
    """Raise UnusableText where a split has no document."""
    total = sum(documents.values())
    if not total:
        raise UnusableText(f"source '{describe_source(config)}' gave no document with text: check data.paths or the id")
    empty = [split for split in SPLITS if not documents[split]]
    if empty:
        raise UnusableText(
            f"all {total} documents fell outside the {empty[0]} split: give more documents (a text file is one; JSONL "
            f"holds one per line) or change data.validation_fraction ({config.validation_fraction}) or "
            f"data.test_fraction ({config.test_fraction})"
        )


def summarise(
    config: DataConfig,
    dropped: Mapping[str, int],
    bad_rows: BadRows,
    indices: Mapping[str, SplitIndex],
    test_counts: NDArray[np.int64],
) -> DatasetSummary:
    """The summary of a data set; `dropped` counts documents by the field that says why."""
    sizes = {
        f"{split}_{unit}": getattr(index, unit)
        for split, index in indices.items()
        for unit in ("documents", "bytes", "tokens")
    }
    validation = indices["validation"]
    return DatasetSummary(
        source=describe_source(config),
        documents=sum(index.documents for index in indices.values()),
        bytes=sum(index.bytes for index in indices.values()),
        vocab_size=len(test_counts),
        end_of_document_id=validation.end_of_document_id,
        bytes_per_token=validation.bytes / (validation.tokens - 1),
        unigram_entropy_nats=entropy_nats(test_counts),
        bad_rows=bad_rows.count,
        bad_row_samples=tuple(bad_rows.samples),
        **dropped,
        **sizes,
    )


def entropy_nats(counts: NDArray[np.int64]) -> float:
    """Entropy of the distribution that counts give."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())

"""What is in a prepared data set: counts, documents, and the windows that a trainer sees."""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer

from flashslm.data.documents import SPLITS
from flashslm.data.files import Files, content_of
from flashslm.data.loader import TokenLoader
from flashslm.data.order import epoch_keys, permute
from flashslm.data.shards import INDEX_FILE, SplitReader

SUMMARY_FILE = "dataset.json"


class Split(NamedTuple):
    """Numbers of one split; lengths are of documents, in tokens of text."""

    documents: int
    bytes: int
    tokens: int
    shards: int
    bytes_per_token: float
    median_document_tokens: int
    longest_document_tokens: int


class SampledDocument(NamedTuple):
    """One document of a split; `number` counts from 0 in the order of the stream."""

    number: int
    tokens: int
    bytes: int
    text: str


class DocumentPart(NamedTuple):
    """What one window holds of one document. `begins` where its first token is there."""

    document: int
    begins: bool
    tokens: int
    text: str


def summary(dataset: Files) -> dict[str, Any]:
    """dataset.json, less the numbers that `split_numbers` takes from the splits themselves."""
    content = content_of(dataset, SUMMARY_FILE)
    if content is None:
        raise ValueError(f"'{dataset}' is not a prepared data set (no {SUMMARY_FILE}): give what prepare_data made")
    facts = json.loads(content)
    return {key: value for key, value in facts.items() if key.partition("_")[0] not in splits(dataset)}


def splits(dataset: Files) -> list[str]:
    """Names of the splits, train first."""
    return [split for split in SPLITS if dataset.size(f"{split}/{INDEX_FILE}") >= 0]


def split_numbers(dataset: Files, split: str) -> Split:
    """Counts of a split, from its index and its documents' places."""
    reader = SplitReader(dataset, split)
    index, (predicted, _) = reader.index, reader.document_sizes()
    text_tokens = predicted - 1  # each document's end is predicted too
    return Split(
        documents=index.documents,
        bytes=index.bytes,
        tokens=index.tokens,
        shards=len(index.shards),
        bytes_per_token=index.bytes / max(1, index.tokens - 1),
        median_document_tokens=int(np.median(text_tokens)),
        longest_document_tokens=int(text_tokens.max()),
    )


def sample_documents(dataset: Files, split: str, count: int, seed: int) -> Iterator[SampledDocument]:
    """`count` documents at random, or all of them; the same for the same seed."""
    reader, tokenizer = SplitReader(dataset, split), tokenizer_of(dataset)
    predicted, sizes = reader.document_sizes()
    keys = epoch_keys(seed, 0)
    for place in range(min(count, len(sizes))):
        number = permute(place, len(sizes), keys)
        start, tokens = reader.document_start(number) + 1, int(predicted[number]) - 1
        text = tokenizer.decode(reader.read(start, start + tokens).tolist()) if tokens else ""
        yield SampledDocument(number, tokens, int(sizes[number]), text)


def windows(loader: TokenLoader, tokenizer: Tokenizer, step: int) -> list[list[DocumentPart]]:
    """The rows of the loader's batch `step`, each in the parts of documents that it is made of."""
    batch = loader.batch(step)
    rows = zip(batch.tokens_BT.numpy(), batch.documents_BT.numpy(), strict=True)
    return [
        list(_document_parts(tokens, documents, loader.end_of_document_id, tokenizer)) for tokens, documents in rows
    ]


def tokenizer_of(dataset: Files) -> Tokenizer:
    """The tokenizer that the data set's ids are of."""
    with dataset.open("tokenizer/tokenizer.json") as opened:
        return Tokenizer.from_str(opened.read().decode())


def _document_parts(tokens: Any, documents: Any, end_id: int, tokenizer: Tokenizer) -> Iterator[DocumentPart]:
    borders = np.flatnonzero(np.diff(documents)) + 1
    for ids, numbers in zip(np.split(tokens, borders), np.split(documents, borders), strict=True):
        begins = bool(ids[0] == end_id)  # the end of the document before is this one's beginning
        text = tokenizer.decode(ids[int(begins) :].tolist(), skip_special_tokens=False)
        yield DocumentPart(int(numbers[0]), begins, len(ids), text)

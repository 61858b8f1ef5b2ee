"""Text to a data set: de-duplicate, split, tokenize, write shards. Same text and recipe, same bytes on disk."""

import hashlib
import heapq
import json
import logging
import shutil
import tempfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict
from tokenizers import Tokenizer

from flashslm.config import DataConfig
from flashslm.data.encoding import TextEncoder
from flashslm.data.file_formats import Document
from flashslm.data.shards import ShardWriter, SplitIndex, SplitReader
from flashslm.data.sources import describe_source, read_documents
from flashslm.data.tokenizer import copy_tokenizer, save_tokenizer, train_tokenizer

SPLITS = ("train", "validation", "test")
HELD_OUT = SPLITS[1:]
BATCH_CHARACTERS = 4_000_000  # text encoded at once
PROGRESS_DOCUMENTS = 50_000
DIGESTS_FILE = "documents.sha256"  # 16 bytes per document, sorted: what tells text that was seen from new text
DIGEST_BYTES = 16

log = logging.getLogger(__name__)


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


def prepare_dataset(
    config: DataConfig,
    seed: int,
    directory: Path,
    s3_client: Any = None,
    on_progress: Callable[[str], None] = log.info,
    documents: Iterable[Document] | None = None,
) -> DatasetSummary:
    """Write `directory`/{tokenizer,train,validation,test}/, the documents' digests and, last, dataset.json.

    The text is that of the recipe's source unless `documents` are given.

    Models learn from train, validation may steer (the search, the law, the variant), test only judges. A document
    belongs to one of them by a hash of its own text, so the splits do not change with the order, the seed or other
    documents; where none belongs to validation or test, the one with the lowest hash is taken.

    While this runs, the temporary directory ($TMPDIR) holds the text once more; memory grows by about 100 bytes per
    document (the set of hashes) over a bound set by `tokenizer_bytes` and `shard_tokens`.
    Raises ValueError when the text cannot make a data set (UnusableText: too little); the message says what to change.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer", *SPLITS):
        shutil.rmtree(directory / name, ignore_errors=True)
    copied = _copy_tokenizer(config, directory)  # before the text: one that cannot be used is an error at once
    with tempfile.TemporaryDirectory(prefix="flashslm-text-") as spool:
        text = read_documents(config, seed, s3_client) if documents is None else documents
        collected = _collect(text, config, Path(spool), on_progress)
        for split in HELD_OUT:
            _ensure_document(split, collected, Path(spool))
        _refuse_unusable(collected, config)
        tokenizer, end_id = copied or _train_tokenizer(config, collected.sample, directory)
        encoder = TextEncoder(tokenizer)
        on_progress(f"tokenizer ready: {tokenizer.get_vocab_size():,} tokens, encoded by {encoder.name}")
        indices = {}
        for split in SPLITS:
            writer = ShardWriter(directory / split, tokenizer.get_vocab_size(), end_id, config.shard_tokens)
            indices[split] = _encode(encoder, Path(spool) / split, writer)
            on_progress(f"{split}: {indices[split].tokens:,} tokens")
    counts = SplitReader(directory / "test").token_counts(tokenizer.get_vocab_size())
    summary = _summarise(config, collected, indices, counts)
    (directory / DIGESTS_FILE).write_bytes(b"".join(sorted(collected.seen)))
    (directory / "dataset.json").write_text(summary.model_dump_json(indent=1), encoding="utf-8")
    return summary


def document_digest(text: str) -> bytes:
    """Identity of a document: sha256 of its text in NFC with runs of white space as one blank."""
    return hashlib.sha256(" ".join(unicodedata.normalize("NFC", text).split()).encode()).digest()


def split_of(digest: bytes, config: DataConfig) -> str:
    """The split that a document belongs to."""
    place = int.from_bytes(digest[:8], "big") / 2**64
    if place < config.validation_fraction:
        return "validation"
    return "test" if place < config.validation_fraction + config.test_fraction else "train"


def entropy_nats(counts: NDArray[np.int64]) -> float:
    """Entropy of the distribution that counts give."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


@dataclass
class FairSample:
    """Whole documents, lowest hash first, up to `max_bytes`: a random sample that does not depend on their order.

    At least one document is kept, cut to `max_bytes` characters.
    """

    max_bytes: int
    num_bytes: int = 0
    _limit: int = 2**64  # lowest rank dropped so far: nothing above it may come in later
    _heap: list[tuple[int, str]] = field(default_factory=list)  # highest rank first

    def offer(self, digest: bytes, text: str) -> None:
        rank = int.from_bytes(digest[8:16], "big")  # the first 8 bytes chose the split
        if rank >= self._limit:
            return
        text = text[: self.max_bytes]
        heapq.heappush(self._heap, (-rank, text))
        self.num_bytes += len(text.encode())
        while self.num_bytes > self.max_bytes and len(self._heap) > 1:
            negative_rank, dropped = heapq.heappop(self._heap)
            self._limit = -negative_rank
            self.num_bytes -= len(dropped.encode())

    def texts(self) -> list[str]:
        return [text for _, text in sorted(self._heap, reverse=True)]


@dataclass
class Collected:
    """What de-duplication left, by split; the text itself waits in the spool."""

    sample: FairSample
    documents: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SPLITS, 0))
    duplicates: int = 0
    seen: set[bytes] = field(default_factory=set)  # the beginnings of digests


def _collect(
    documents: Iterable[Document], config: DataConfig, spool: Path, on_progress: Callable[[str], None]
) -> Collected:
    """De-duplicate and write one spool file per split (one JSON string per line); sample train for the tokenizer."""
    collected = Collected(FairSample(config.tokenizer_bytes))
    with ExitStack() as stack:
        files = {split: stack.enter_context((spool / split).open("w", encoding="utf-8")) for split in SPLITS}
        for number, document in enumerate(d for d in documents if d.text.strip()):
            digest = document_digest(document.text)
            if digest[:DIGEST_BYTES] in collected.seen:
                collected.duplicates += 1
                continue
            collected.seen.add(digest[:DIGEST_BYTES])
            split = split_of(digest, config)
            collected.documents[split] += 1
            files[split].write(json.dumps(document.text, ensure_ascii=False) + "\n")
            if split == "train" and config.tokenizer == "train":
                collected.sample.offer(digest, document.text)
            if number % PROGRESS_DOCUMENTS == PROGRESS_DOCUMENTS - 1:
                on_progress(f"{number + 1:,} documents read, {collected.duplicates:,} duplicates")
    return collected


def _ensure_document(split: str, collected: Collected, spool: Path) -> None:
    """Of few documents none may belong to a split: then that of train whose hash is nearest to it does."""
    if collected.documents[split] or collected.documents["train"] < 2:
        return
    former = (spool / "train").rename(spool / "all")
    with former.open(encoding="utf-8") as lines:
        _, nearest = min((document_digest(json.loads(line)), number) for number, line in enumerate(lines))
    with former.open(encoding="utf-8") as lines, (spool / "train").open("w", encoding="utf-8") as train:
        for number, line in enumerate(lines):
            if number == nearest:
                (spool / split).write_text(line, encoding="utf-8")
            else:
                train.write(line)
    collected.documents |= {"train": collected.documents["train"] - 1, split: 1}


def _refuse_unusable(collected: Collected, config: DataConfig) -> None:
    total = sum(collected.documents.values())
    if not total:
        raise UnusableText(f"source '{describe_source(config)}' gave no document with text: check data.paths or the id")
    empty = [split for split in SPLITS if not collected.documents[split]]
    if empty:
        raise UnusableText(
            f"all {total} documents fell outside the {empty[0]} split: give more documents (a text file is one; JSONL "
            f"holds one per line) or change data.validation_fraction ({config.validation_fraction}) or "
            f"data.test_fraction ({config.test_fraction})"
        )


def _copy_tokenizer(config: DataConfig, directory: Path) -> tuple[Tokenizer, int] | None:
    if config.tokenizer == "train":
        return None
    return copy_tokenizer(config.tokenizer, directory / "tokenizer", config.tokenizer_revision)


def _train_tokenizer(config: DataConfig, sample: FairSample, directory: Path) -> tuple[Tokenizer, int]:
    tokenizer = train_tokenizer(sample.texts(), config.vocab_size)
    save_tokenizer(tokenizer, directory / "tokenizer")
    return tokenizer, 0


def _encode(encoder: TextEncoder, spool: Path, writer: ShardWriter) -> SplitIndex:
    for texts in _batches(spool):
        for text, ids in zip(texts, encoder.encode(texts), strict=True):
            writer.add(ids, len(text.encode()))
    return writer.close()


def _batches(spool: Path) -> Iterator[list[str]]:
    texts, size = [], 0
    with spool.open(encoding="utf-8") as lines:
        for line in lines:
            texts.append(json.loads(line))
            size += len(line)
            if size >= BATCH_CHARACTERS:
                yield texts
                texts, size = [], 0
    if texts:
        yield texts


def _summarise(
    config: DataConfig, collected: Collected, indices: dict[str, SplitIndex], counts: NDArray[np.int64]
) -> DatasetSummary:
    train, validation, test = (indices[split] for split in SPLITS)
    return DatasetSummary(
        source=describe_source(config),
        documents=sum(index.documents for index in indices.values()),
        duplicates_dropped=collected.duplicates,
        bytes=sum(index.bytes for index in indices.values()),
        train_documents=train.documents,
        train_bytes=train.bytes,
        train_tokens=train.tokens,
        validation_documents=validation.documents,
        validation_bytes=validation.bytes,
        validation_tokens=validation.tokens,
        test_documents=test.documents,
        test_bytes=test.bytes,
        test_tokens=test.tokens,
        vocab_size=len(counts),
        end_of_document_id=validation.end_of_document_id,
        bytes_per_token=validation.bytes / (validation.tokens - 1),
        unigram_entropy_nats=entropy_nats(counts),
    )

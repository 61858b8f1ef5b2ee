"""The text that a tokenizer is trained on: a fair sample of the training documents, from bounded reading."""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flashslm.config import DataConfig
from flashslm.data.bad_rows import BadRows
from flashslm.data.documents import DIGEST_BYTES, SPLITS, document_digest, split_of
from flashslm.data.file_formats import Document
from flashslm.data.plan import Piece, read_piece
from flashslm.data.sources import limit_bytes
from flashslm.data.summary import refuse_unusable

_WHOLE_BYTES = 64_000_000  # of text, or _TIMES the sample: up to here all of the text is read
_TIMES = 16
_PLACES = 32  # pieces of a larger source whose beginnings are read


@dataclass
class FairSample:
    """Documents, lowest hash first, up to `max_bytes`: a random sample that does not depend on their order.

    The last one is cut to fit: of documents as long as books a sample without it could be almost empty.
    """

    max_bytes: int
    num_bytes: int = 0
    _limit: int = 2**64  # lowest rank dropped so far: nothing above it may come in later
    _heap: list[tuple[int, int, str]] = field(default_factory=list)  # highest rank first, and the text with its bytes

    def offer(self, digest: bytes, text: str) -> None:
        rank = int.from_bytes(digest[8:16], "big")  # the first 8 bytes chose the split
        if rank >= self._limit:
            return
        text = text[: self.max_bytes]
        size = len(text.encode())
        heapq.heappush(self._heap, (-rank, size, text))
        self.num_bytes += size
        while self.num_bytes - self._heap[0][1] >= self.max_bytes:
            negative_rank, dropped_bytes, _ = heapq.heappop(self._heap)
            self._limit = -negative_rank
            self.num_bytes -= dropped_bytes

    def texts(self) -> list[str]:
        documents = (Document(text, "") for *_, text in sorted(self._heap, reverse=True))
        return [document.text for document in limit_bytes(documents, self.max_bytes)]


def sample_texts(config: DataConfig, pieces: Sequence[Piece], seed: int, s3_client: Any = None) -> list[str]:
    """At most `tokenizer_bytes` of the source's distinct training documents.

    A source of a few megabytes is read whole; of a larger one the beginnings of pieces that are spread over it. Raises
    UnusableText where a source that was read whole has too few documents for the splits.
    """
    sample, seen = FairSample(config.tokenizer_bytes), set()
    budget, documents, read_bytes = max(_WHOLE_BYTES, _TIMES * config.tokenizer_bytes), dict.fromkeys(SPLITS, 0), 0
    for document in _read_some(config, pieces, seed, s3_client, budget):
        read_bytes += len(document.text.encode())
        digest = document_digest(document.text)
        if digest[:DIGEST_BYTES] not in seen and document.text.strip():
            seen.add(digest[:DIGEST_BYTES])
            split = split_of(digest, config)
            documents[split] += 1
            if split == "train":
                sample.offer(digest, document.text)
    if len(seen) < len(SPLITS) and read_bytes < budget:
        refuse_unusable(documents, config)
    return sample.texts()


def _read_some(
    config: DataConfig, pieces: Sequence[Piece], seed: int, s3_client: Any, budget: int
) -> Iterator[Document]:
    chosen, bad_rows = pieces, BadRows(config.max_bad_rows_fraction)
    if len(pieces) > _PLACES:
        chosen = [pieces[number * len(pieces) // _PLACES] for number in range(_PLACES)]
    for number, piece in enumerate(chosen):
        share = budget * (number + 1) // len(chosen) - budget * number // len(chosen)
        yield from limit_bytes(read_piece(config, piece, seed, bad_rows, s3_client), share)

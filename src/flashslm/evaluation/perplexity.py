"""Loss, perplexity and bits per byte document by document, with the context and the stride that are stated.

Every document is read by itself, from an end-of-document token on. It is cut into windows of `context` tokens, each
`stride` further than the one before; a window scores the tokens that no earlier one has, so all but a document's first
`context` tokens are predicted from at least `context - stride + 1` tokens before them, and each token once.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashslm.data.shards import SplitReader
from flashslm.evaluation.items import MetricItems, identity
from flashslm.evaluation.scoring import Scorer, Targets
from flashslm.models.hybrid import HybridLM
from flashslm.ops.dispatch import token_scores
from flashslm.ops.token_scores import ScoreTokens


@dataclass(frozen=True)
class Reading:
    """How documents are read: tokens of context, of stride, windows at a time."""

    context: int
    stride: int
    batch_size: int

    @property
    def sha256(self) -> str:
        """Of what decides how much context each prediction has; the loss depends on it."""
        return identity(str(self.context).encode(), str(self.stride).encode())

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.context:
            raise ValueError(f"stride {self.stride} is not from 1 to the context of {self.context} tokens")


class Window(NamedTuple):
    """Tokens [begin, end) of a document predict [begin + 1, end + 1); those after `scored` are new."""

    document: int
    begin: int
    end: int
    scored: int


@dataclass(frozen=True)
class SampledDocuments:
    """Documents of a split: `targets_N` predictions each (its end among them) and the `bytes_N` of text behind them."""

    reader: SplitReader
    indices_N: NDArray[np.int64]
    targets_N: NDArray[np.int64]
    bytes_N: NDArray[np.float64]

    def tokens(self, number: int) -> Tensor:
        """int64 [targets + 1]."""
        start = self.reader.document_start(int(self.indices_N[number]))
        return torch.from_numpy(self.reader.read(start, start + int(self.targets_N[number]) + 1))

    @property
    def items_sha256(self) -> str:
        """Of which documents these are; the same for every tokenizer where whole documents are read."""
        return identity(self.indices_N.tobytes(), self.bytes_N.tobytes())


def sample_documents(reader: SplitReader, max_tokens: int, seed: int) -> SampledDocuments:
    """The split's documents (0), or in a seeded order as many as have `max_tokens` predictions, the last one cut."""
    targets_D, bytes_D = reader.document_sizes()
    if not max_tokens or max_tokens >= targets_D.sum():
        return SampledDocuments(reader, np.arange(len(targets_D)), targets_D, bytes_D.astype(np.float64))
    order = np.random.default_rng(seed).permutation(len(targets_D))
    before = np.cumsum(targets_D[order]) - targets_D[order]
    chosen = order[before < max_tokens]
    targets_N = np.minimum(targets_D[chosen], max_tokens - before[: len(chosen)])
    return SampledDocuments(reader, chosen, targets_N, bytes_D[chosen] * (targets_N / targets_D[chosen]))


def evaluate_perplexity(
    model: HybridLM, documents: SampledDocuments, reading: Reading
) -> tuple[dict[str, int], dict[str, MetricItems]]:
    """What was read, and the metrics `loss_nats` (per token), `perplexity` and `bits_per_byte` by document.

    Bits per byte divide by the text's size in UTF-8, so they compare models of different tokenizers; the predictions of
    a document's end are part of the numerator.
    """
    sizes = documents.targets_N
    nats = document_nats(model, documents.tokens, sizes.tolist(), reading)
    tokens = tuple(map(float, sizes))
    sha256 = identity(documents.items_sha256.encode(), reading.sha256.encode())
    by_token = identity(sha256.encode(), sizes.tobytes(), *(s.sha256.encode() for s in documents.reader.index.shards))
    per_token = MetricItems(totals=nats, weights=tokens, higher_is_better=False, items_sha256=by_token)
    bits = tuple(x / math.log(2) for x in nats)
    size_bytes = tuple(documents.bytes_N.tolist())
    facts = {"tokens": int(sizes.sum()), "documents": len(sizes), "context": reading.context, "stride": reading.stride}
    return facts, {
        "loss_nats": per_token,
        "perplexity": per_token.model_copy(update={"scale": "exponential"}),
        "bits_per_byte": MetricItems(totals=bits, weights=size_bytes, higher_is_better=False, items_sha256=sha256),
    }


def document_nats(
    model: HybridLM,
    tokens: Callable[[int], Tensor],
    num_targets: Sequence[int],
    reading: Reading,
    score_tokens: ScoreTokens = token_scores,
) -> tuple[float, ...]:
    """Nats of each document, whose tokens (int64 [targets + 1]) are asked for by its number."""
    totals, scorer = np.zeros(len(num_targets)), Scorer(model, score_tokens=score_tokens)
    windows = sorted(
        (w for number, count in enumerate(num_targets) for w in document_windows(number, count, reading)),
        key=lambda w: w.begin - w.end,
    )  # windows of about one length share a batch
    for first in range(0, len(windows), reading.batch_size):
        batch = windows[first : first + reading.batch_size]
        for window, nats in zip(batch, _window_nats(scorer, tokens, batch), strict=True):
            totals[window.document] += nats
    return tuple(totals.tolist())


def document_windows(number: int, num_targets: int, reading: Reading) -> Iterator[Window]:
    """The last window reaches back as far as the others do."""
    scored, end = 0, min(reading.context, num_targets)
    while scored < num_targets:
        yield Window(number, max(0, end - reading.context), end, scored)
        scored, end = end, min(end + reading.stride, num_targets)


def _window_nats(scorer: Scorer, tokens: Callable[[int], Tensor], batch: Sequence[Window]) -> list[float]:
    """Rows are padded on the right, where a causal model does not look."""
    rows, runs = [], []
    for number, window in enumerate(batch):
        text = tokens(window.document)[window.begin : window.end + 1]
        rows.append(text[:-1])
        runs.append((number, window.scored - window.begin, text[window.scored - window.begin + 1 :].tolist()))
    tokens_BT = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    nats, _ = scorer.score(tokens_BT, Targets.of_runs(runs), len(batch))
    return [-x for x in nats]

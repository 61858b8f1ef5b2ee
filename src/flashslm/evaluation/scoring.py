"""Log-likelihoods of tokens in texts of any length: states are carried from chunk to chunk, and logits exist only for
tokens that are scored, few at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flashslm.models.hybrid import HybridLM
from flashslm.models.states import State, make_state
from flashslm.ops.dispatch import token_scores
from flashslm.ops.token_scores import HeadInputs, ScoreTokens

CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}  # of each row at a time
BATCH_TOKENS = {"cpu": 0, "cuda": 32768}  # of all rows at a time where the rows are few: a pass must fill the device


@dataclass(frozen=True)
class Targets:
    """Tokens to be scored: that of `tokens_N` follows place `columns_N` of row `rows_N`, and counts for `owners_N`."""

    rows_N: Tensor
    columns_N: Tensor
    tokens_N: Tensor
    owners_N: Tensor

    @classmethod
    def of_runs(cls, runs: Sequence[tuple[int, int, Sequence[int]]]) -> "Targets":
        """One owner per run of tokens: (row, place of the token before the first, tokens)."""
        sizes = np.array([len(tokens) for _, _, tokens in runs])
        owners = np.repeat(np.arange(len(runs)), sizes)
        rows, first = (np.array([run[part] for run in runs])[owners] for part in (0, 1))
        place_in_run = np.arange(len(owners)) - (sizes.cumsum() - sizes)[owners]
        tokens = _joined([tokens for _, _, tokens in runs])
        return cls(*map(torch.from_numpy, (rows, first + place_in_run, tokens, owners)))

    def select(self, index: Tensor) -> "Targets":
        return Targets(*(of[index] for of in (self.rows_N, self.columns_N, self.tokens_N, self.owners_N)))

    def to(self, device: torch.device) -> "Targets":
        parts = (self.rows_N, self.columns_N, self.tokens_N, self.owners_N)
        return Targets(*(of.to(device, non_blocking=True) for of in parts))


@dataclass(frozen=True)
class Context:
    """What a model keeps of `length` tokens of text that several rows begin with."""

    states: list[State]
    length: int

    def rows(self, index_B: Tensor) -> "Context":
        """One row for each index, in that order; the same may come again."""
        picked = [make_state(type(state), (of.index_select(0, index_B) for of in state)) for state in self.states]
        return Context(picked, self.length)


class Scorer:
    """Reads right-padded rows with a model; the states of its meta tokens are computed once, here.

    `score_tokens` is the backend by which the head's log-probabilities are computed.
    """

    def __init__(self, model: HybridLM, chunk_tokens: int = 0, score_tokens: ScoreTokens = token_scores):
        self.model, self.device = model, model.embedding.weight.device
        self.chunk_tokens, self.score_tokens = chunk_tokens, score_tokens
        with torch.inference_mode():
            self.beginning = Context(model.prefix_states(), 0)

    @torch.inference_mode()
    def read(self, tokens_BT: Tensor) -> Context:
        """The states after rows of one length."""
        context = self._begin(len(tokens_BT), None)
        for chunk_BT in self._chunks(tokens_BT):
            _, context = self._extend(chunk_BT, context)
        return context

    @torch.inference_mode()
    def last_hidden(self, tokens_BT: Tensor, count: int) -> Tensor:
        """Hidden states [B, count, D] of the last tokens of rows of one length, on the device."""
        context, kept = self._begin(len(tokens_BT), None), None
        for chunk_BT in self._chunks(tokens_BT):
            hidden_BTD, context = self._extend(chunk_BT, context)
            kept = hidden_BTD if kept is None else torch.cat([kept, hidden_BTD], dim=1)
            kept = kept[:, -count:]
        if kept is None or kept.shape[1] < count:
            raise ValueError(f"rows of {tokens_BT.shape[1]} tokens have no last {count}")
        return kept

    @torch.inference_mode()
    def score(
        self, tokens_BT: Tensor, targets: Targets, num_owners: int, context: Context | None = None
    ) -> tuple[list[float], list[bool]]:
        """By owner: the sum of its tokens' log-probabilities in nats, and whether each was the most likely one.

        With `context`, of as many rows, the places of `targets` begin behind it. Waits for the device once, at the end.
        """
        nats_O = torch.zeros(num_owners, dtype=torch.float64, device=self.device)
        misses_O = torch.zeros(num_owners, dtype=torch.int64, device=self.device)
        context, first = self._begin(len(tokens_BT), context), 0
        for chunk_BT in self._chunks(tokens_BT):
            hidden_BTD, context = self._extend(chunk_BT, context)
            last = first + chunk_BT.shape[1]
            here = targets.select(((targets.columns_N >= first) & (targets.columns_N < last)).nonzero()[:, 0])
            self._add(hidden_BTD, here.to(self.device), first, nats_O, misses_O)
            first = last
        return nats_O.tolist(), (misses_O == 0).tolist()

    def _add(self, hidden_BTD: Tensor, targets: Targets, first: int, nats_O: Tensor, misses_O: Tensor) -> None:
        hidden_ND = hidden_BTD[targets.rows_N, targets.columns_N - first]
        nats_N, is_likeliest_N = self.score_tokens(HeadInputs(hidden_ND, self.model.embedding.weight, targets.tokens_N))
        nats_O.index_add_(0, targets.owners_N, nats_N.double())
        misses_O.index_add_(0, targets.owners_N, (~is_likeliest_N).long())

    def _chunks(self, tokens_BT: Tensor) -> tuple[Tensor, ...]:
        kind = self.device.type
        size = self.chunk_tokens or max(CHUNK_TOKENS[kind], BATCH_TOKENS[kind] // len(tokens_BT))
        chunks: tuple[Tensor, ...] = tokens_BT.split(size, dim=1)
        return chunks

    def _begin(self, batch: int, context: Context | None) -> Context:
        index_B = torch.zeros(batch, dtype=torch.int64, device=self.device)
        return context or self.beginning.rows(index_B)

    def _extend(self, tokens_BT: Tensor, context: Context) -> tuple[Tensor, Context]:
        hidden_BTD, states = self.model.extend(tokens_BT.to(self.device), context.states, context.length)
        return hidden_BTD, Context(states, context.length + tokens_BT.shape[1])


def right_padded(rows: Sequence[Sequence[int]]) -> Tensor:
    """int64 [B, T]; what follows a row's end is token 0, which a causal model reads after it."""
    sizes_B = np.array([len(row) for row in rows])
    padded_BT = np.zeros((len(rows), sizes_B.max()), np.int64)
    padded_BT[np.arange(padded_BT.shape[1]) < sizes_B[:, None]] = _joined(rows)
    return torch.from_numpy(padded_BT)


def _joined(rows: Sequence[Sequence[int]]) -> NDArray[np.int64]:
    """One row behind the other. torch.tensor takes several times as long for a list."""
    return np.fromiter(chain.from_iterable(rows), np.int64, sum(map(len, rows)))

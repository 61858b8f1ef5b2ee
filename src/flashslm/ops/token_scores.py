"""How likely a linear head finds given tokens, without the whole matrix of logits.

`ops.fused.token_scores` has a form that never writes a logit.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.precision import at_least_fp32

CHUNK_LOGITS = {"cpu": 1 << 23, "cuda": 1 << 28}  # held at a time


class HeadInputs(NamedTuple):
    """Hidden states [N, D], the head's weight [V, D], and the tokens (int64 [N]) whose scores are asked for."""

    hidden_ND: Tensor
    weight_VD: Tensor
    tokens_N: Tensor


class TokenScores(NamedTuple):
    """Log-probabilities, at least fp32, and whether each token has the highest one (of equal ones the first has)."""

    nats_N: Tensor
    is_likeliest_N: Tensor


ScoreTokens = Callable[[HeadInputs], TokenScores]


def token_scores_naive(inputs: HeadInputs) -> TokenScores:
    """Form all logits: the specification."""
    hidden_ND, weight_VD, tokens_N = inputs
    logits_NV = at_least_fp32(hidden_ND) @ at_least_fp32(weight_VD).T
    nats_N = logits_NV.log_softmax(dim=-1).gather(1, tokens_N[:, None])[:, 0]
    return TokenScores(nats_N, logits_NV.argmax(dim=-1) == tokens_N)


def token_scores_chunked(inputs: HeadInputs) -> TokenScores:
    """Logits of a few tokens at a time, in hidden's dtype; their softmax is at least fp32."""
    hidden_ND, weight_VD, tokens_N = inputs
    rows = max(1, CHUNK_LOGITS[hidden_ND.device.type] // weight_VD.shape[0])
    chunks = zip(hidden_ND.split(rows), tokens_N.split(rows), strict=True)
    parts = [_scores(F.linear(hidden, weight_VD), tokens) for hidden, tokens in chunks]
    return TokenScores(*(torch.cat(column) for column in zip(*parts, strict=True)))


def _scores(logits_NV: Tensor, tokens_N: Tensor) -> TokenScores:
    logits_NV = at_least_fp32(logits_NV)
    nats_N = logits_NV.gather(1, tokens_N[:, None])[:, 0] - logits_NV.logsumexp(dim=-1)
    return TokenScores(nats_N, logits_NV.argmax(dim=-1) == tokens_N)

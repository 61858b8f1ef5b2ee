"""Choose the next token on the device, without waiting for it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

LEAST_TEMPERATURE = 1e-5  # logits divided by less overflow; the likeliest token has all of the probability before that


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0 and below LEAST_TEMPERATURE; top_k 0 and top_p 1 keep every token.

    Top-k comes first, then top-p of what is left.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if not 0 <= self.temperature < math.inf:
            problems.append(f"temperature is {self.temperature}: a number of at least 0 (0 = greedy)")
        if self.top_k < 0:
            problems.append(f"top_k is {self.top_k}: at least 0 (0 = all tokens)")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}: above 0, at most 1 (1 = all tokens)")
        if not -(2**63) <= self.seed < 2**64:
            problems.append(f"seed is {self.seed}: from -2**63 to 2**64 - 1")
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def is_greedy(self) -> bool:
        return self.temperature < LEAST_TEMPERATURE


GREEDY = Sampling()


class Sampler:
    """Draws tokens as `Sampling` says from a generator of its own."""

    def __init__(self, sampling: Sampling, device: torch.device | str) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """One token per row, int64 [B]."""
        s = self.sampling
        if s.is_greedy:
            return logits_BV.argmax(dim=-1)
        scores = logits_BV.float() / s.temperature
        tokens = None
        if s.top_k or s.top_p < 1:
            # Sorted, so that both cuts are a prefix and exactly top_k tokens stay when several tie.
            scores, tokens = scores.topk(min(s.top_k or scores.shape[-1], scores.shape[-1]))
        probabilities = scores.softmax(dim=-1)
        if s.top_p < 1:
            probabilities = _within_top_p(probabilities, s.top_p)
        choice = self._draw(probabilities)
        return choice if tokens is None else tokens.gather(-1, choice[:, None])[:, 0]

    def _draw(self, probabilities: Tensor) -> Tensor:
        """Sample in proportion: the smallest of exponential waiting times (torch.multinomial waits for the device)."""
        waiting = torch.empty_like(probabilities).exponential_(generator=self.generator)
        return (probabilities / waiting).argmax(dim=-1)


class RowSampler:
    """Replaces the greedy tokens of rows that sample, each by a `Sampling` of its own.

    A row's tokens depend on its seed and not on the rows beside it: a draw takes one random number, which comes from
    the host, where the tokens are read after every step.
    """

    def __init__(self, rows: int) -> None:
        self.samplings = [GREEDY] * rows
        self.randoms = [Random()] * rows

    def begin(self, row: int, sampling: Sampling) -> None:
        """A new text in a row."""
        self.samplings[row] = sampling
        self.randoms[row] = Random(sampling.seed % 2**64)  # Random drops a seed's sign

    def __call__(self, logits_BV: Tensor, tokens_B: Tensor, rows: Sequence[int]) -> None:
        """Draw the tokens of those of `rows` that sample."""
        drawing = [row for row in rows if not self.samplings[row].is_greedy]
        if not drawing:
            return
        vocabulary = logits_BV.shape[-1]
        settings = [
            (s.temperature, min(s.top_k or vocabulary, vocabulary), s.top_p, self.randoms[row].random())
            for row, s in ((row, self.samplings[row]) for row in drawing)
        ]
        chosen = torch.tensor(settings, dtype=torch.float64).to(logits_BV.device)
        temperature_R1, top_k_R1, top_p_R1, point_R1 = chosen.split(1, dim=1)
        scores_RV, tokens_RV = (logits_BV[drawing].double() / temperature_R1).sort(dim=-1, descending=True)
        ranks_V = torch.arange(vocabulary, device=logits_BV.device)
        probabilities_RV = scores_RV.masked_fill(ranks_V >= top_k_R1, -torch.inf).softmax(dim=-1)
        cumulative_RV = _within_top_p(probabilities_RV, top_p_R1).cumsum(dim=-1)
        choice_R1 = (cumulative_RV <= point_R1 * cumulative_RV[:, -1:]).sum(dim=-1, keepdim=True)
        tokens_B[drawing] = tokens_RV.gather(-1, choice_R1)[:, 0]


def _within_top_p(probabilities_BV: Tensor, top_p: float | Tensor) -> Tensor:
    """Sorted probabilities, 0 from the token on before which the more likely ones make up `top_p`."""
    more_likely = probabilities_BV.cumsum(dim=-1) - probabilities_BV
    return probabilities_BV.masked_fill(more_likely >= top_p, 0)

"""Choose the next token on the device, without waiting for it."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Greedy at temperature 0; top_k 0 and top_p 1 keep every token. Top-k comes first, then top-p of what is left."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        problems = []
        if self.temperature < 0:
            problems.append(f"temperature is {self.temperature}: at least 0 (0 = greedy)")
        if self.top_k < 0:
            problems.append(f"top_k is {self.top_k}: at least 0 (0 = all tokens)")
        if not 0 < self.top_p <= 1:
            problems.append(f"top_p is {self.top_p}: above 0, at most 1 (1 = all tokens)")
        if problems:
            raise ValueError("; ".join(problems))


GREEDY = Sampling()


class Sampler:
    """Draws tokens as `Sampling` says from a generator of its own."""

    def __init__(self, sampling: Sampling, device: torch.device | str) -> None:
        self.sampling = sampling
        self.generator = torch.Generator(device).manual_seed(sampling.seed)

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """One token per row, int64 [B]."""
        s = self.sampling
        if s.temperature == 0:
            return logits_BV.argmax(dim=-1)
        scores = logits_BV.float() / s.temperature
        tokens = None
        if s.top_k or s.top_p < 1:
            # Sorted, so that both cuts are a prefix and exactly top_k tokens stay when several tie.
            scores, tokens = scores.topk(min(s.top_k or scores.shape[-1], scores.shape[-1]))
        probabilities = scores.softmax(dim=-1)
        if s.top_p < 1:
            # A token stays if the more likely ones do not yet make up top_p.
            more_likely = probabilities.cumsum(dim=-1) - probabilities
            probabilities = probabilities.masked_fill(more_likely >= s.top_p, 0)
        choice = self._draw(probabilities)
        return choice if tokens is None else tokens.gather(-1, choice[:, None])[:, 0]

    def _draw(self, probabilities: Tensor) -> Tensor:
        """Sample in proportion: the smallest of exponential waiting times (torch.multinomial waits for the device)."""
        waiting = torch.empty_like(probabilities).exponential_(generator=self.generator)
        return (probabilities / waiting).argmax(dim=-1)

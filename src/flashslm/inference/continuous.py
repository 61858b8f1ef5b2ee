"""Continuous batching: prompts of any lengths share a batch, and a row whose text has ended takes the next prompt.

Recurrent states allow no padding before a text, so each prompt is prefilled by itself and its states are copied into a
row of the cache that all decode from (Yu et al. 2022, Orca).
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from flashslm.config import WeightFormat
from flashslm.inference.decode_graph import DecodeGraph
from flashslm.inference.int8_model import as_served
from flashslm.inference.prefill import Prefill
from flashslm.inference.sampling import GREEDY, RowSampler, Sampler, Sampling
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM


class ContinuousBatch:
    """Decodes up to `batch_size` texts at a time, each of up to `max_context` tokens, its prompt among them.

    A prompt is prefilled by `begin_prefill` and `prefill_chunk`, then placed into a free row; `advance` decodes a token
    of every occupied row. `generate` does so for a list of prompts. Weights in `int8` are those of `DecodeEngine`.
    """

    def __init__(
        self,
        model: HybridLM,
        batch_size: int,
        max_context: int,
        sampling: Sampling = GREEDY,
        weights: WeightFormat = "full",
    ) -> None:
        weight = as_served(model, weights).embedding.weight
        self.model, self.max_context, self.sampling = model, max_context, sampling
        self.cache, self.single = (
            Cache.allocate(model.architecture, rows, max_context, weight.device, weight.dtype)
            for rows in (batch_size, 1)
        )
        self.tokens_B = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        self.occupied_B = torch.zeros_like(self.tokens_B)
        self.prefill = Prefill(model, self.single, model.prefix_states())
        self.row_sampler = RowSampler(batch_size)
        greedy = Sampler(GREEDY, weight.device)
        self.decode_graph = DecodeGraph(model, self.cache, self.tokens_B, greedy, int8=weights == "int8")

    @property
    def logits_BV(self) -> Tensor:
        """What the last token of every row was chosen from, in a buffer that the next step overwrites."""
        return self.decode_graph.logits_BV

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, is_finished: Callable[[Sequence[int]], bool]
    ) -> list[list[int]]:
        """The new tokens of each prompt, up to and including the one with which `is_finished` is true of them.

        Long prompts come first; where texts are sampled, each has a seed of its own. Raises ValueError for a prompt
        that leaves no place for `max_new_tokens`.
        """
        if any(not 0 < len(prompt) <= self.max_context - max_new_tokens for prompt in prompts) or max_new_tokens < 1:
            raise ValueError(
                f"prompts have {min(map(len, prompts))} to {max(map(len, prompts))} tokens, {max_new_tokens} are to "
                f"follow: both must be at least 1, and together at most {self.max_context}"
            )
        waiting = deque(sorted(range(len(prompts)), key=lambda index: -len(prompts[index])))
        texts: list[list[int]] = [[] for _ in prompts]

        def is_done(index: int) -> bool:
            return len(texts[index]) == max_new_tokens or is_finished(texts[index])

        def next_text(row: int) -> int | None:
            while waiting:
                index = waiting.popleft()
                self.begin_prefill(prompts[index])
                while not self.prefill_chunk():
                    pass
                texts[index].append(self.place(row, replace(self.sampling, seed=self.sampling.seed + index)))
                if not is_done(index):
                    return index
            self.free(row)
            return None

        rows = [next_text(row) for row in range(len(self.tokens_B))]
        while occupied := [row for row, index in enumerate(rows) if index is not None]:
            for row, token in zip(occupied, self.advance(occupied), strict=True):
                index = rows[row]
                assert index is not None
                texts[index].append(token)
                rows[row] = next_text(row) if is_done(index) else index
        return texts

    def begin_prefill(self, prompt: Sequence[int]) -> None:
        """Take a prompt in place of the one before."""
        self.prefill.begin(torch.tensor([prompt]))

    def prefill_chunk(self) -> bool:
        """Prefill the next chunk of the prompt; whether it was the last."""
        return self.prefill.advance()

    @torch.inference_mode()
    def place(self, row: int, sampling: Sampling = GREEDY) -> int:
        """Continue the prefilled prompt in a row; the first token."""
        self.cache.copy_row(row, self.single)
        self.occupied_B[row] = 1
        self.logits_BV[row] = self.prefill.logits_BV[0]
        self.tokens_B[row] = self.logits_BV[row].argmax()
        self.row_sampler.begin(row, sampling)
        self.row_sampler(self.logits_BV, self.tokens_B, [row])
        self.decode_graph.begin(row)
        return int(self.tokens_B[row])

    @torch.inference_mode()
    def advance(self, rows: Sequence[int]) -> list[int]:
        """One step; the next tokens of `rows`, which are all that are occupied."""
        self.cache.lengths_B *= self.occupied_B  # a free row takes part from the first place on, and never fills up
        self.decode_graph.advance()
        self.row_sampler(self.logits_BV, self.tokens_B, rows)
        tokens: list[int] = self.tokens_B.tolist()
        return [tokens[row] for row in rows]

    @torch.inference_mode()
    def free(self, row: int) -> None:
        """The row's text has ended."""
        self.occupied_B[row] = 0

"""Continuous batching: prompts of any lengths share a batch, and a row whose text has ended takes the next prompt.

Recurrent states allow no padding before a text, so each prompt is prefilled by itself and its states are copied into a
row of the cache that all decode from (Yu et al. 2022, Orca).
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch

from flashslm.inference.decode_graph import DecodeGraph
from flashslm.inference.engine import PREFILL_CHUNK
from flashslm.inference.sampling import GREEDY, Sampler, Sampling
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM


class ContinuousBatch:
    """Decodes up to `batch_size` texts at a time, each of up to `max_context` tokens, its prompt among them."""

    def __init__(self, model: HybridLM, batch_size: int, max_context: int, sampling: Sampling = GREEDY) -> None:
        weight = model.embedding.weight
        self.model, self.max_context = model, max_context
        self.cache, self.single = (
            Cache.allocate(model.architecture, rows, max_context, weight.device, weight.dtype)
            for rows in (batch_size, 1)
        )
        self.tokens_B = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        self.prefix = model.prefix_states()
        self.sampler = Sampler(sampling, weight.device)
        self.decode_graph = DecodeGraph(model, self.cache, self.tokens_B, self.sampler)
        self.cache.lengths_B.zero_()

    def generate(
        self, prompts: Sequence[Sequence[int]], max_new_tokens: int, is_finished: Callable[[Sequence[int]], bool]
    ) -> list[list[int]]:
        """The new tokens of each prompt, up to and including the one with which `is_finished` is true of them.

        Long prompts come first. Raises ValueError for a prompt that leaves no place for `max_new_tokens`.
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
                texts[index].append(self._start(row, prompts[index]))
                if not is_done(index):
                    return index
            self._rest(row)
            return None

        rows = [next_text(row) for row in range(len(self.tokens_B))]
        while any(index is not None for index in rows):
            self._advance()
            tokens = self.tokens_B.tolist()
            for row, index in enumerate(rows):
                if index is not None:
                    texts[index].append(tokens[row])
                    rows[row] = next_text(row) if is_done(index) else index
        return texts

    @torch.inference_mode()
    def _start(self, row: int, prompt: Sequence[int]) -> int:
        """Prefill a prompt into a row; the token after it."""
        device = self.tokens_B.device
        self.single.reset_from_prefix(self.prefix, self.model.architecture.num_meta_tokens)
        for chunk_1T in torch.tensor([prompt]).to(device).split(PREFILL_CHUNK[device.type], dim=1):
            logits_1V = self.model.prefill(chunk_1T, self.single)
        self.cache.copy_row(row, self.single)
        self.tokens_B[row] = self.sampler(logits_1V)[0]
        self.decode_graph.begin(row)
        return int(self.tokens_B[row])

    @torch.inference_mode()
    def _advance(self) -> None:
        self.decode_graph.advance()

    @torch.inference_mode()
    def _rest(self, row: int) -> None:
        """A row without a text still takes part in every step: from the first place on, it never runs out of places."""
        self.cache.lengths_B[row] = 0

"""DecodeEngine: prefill and decode batches on static caches; on CUDA a decode step is one graph per batch size."""

from collections.abc import Sequence

import torch
from torch import Tensor

from flashslm.config import WeightFormat
from flashslm.inference.decode_graph import DecodeGraph
from flashslm.inference.int8_model import as_served
from flashslm.inference.prefill import Prefill
from flashslm.inference.sampling import GREEDY, Sampler, Sampling
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM


class DecodeEngine:
    """Decodes sequences of equal prompt length, up to `max_context` text tokens each.

    Of the batch sizes it is given the smallest that holds the prompts runs; all work on the rows of one cache. The meta
    tokens' states are computed once, here, and copied at every prefill. With weights in `int8` the model's matrices are
    rounded in place (`round_to_int8`), and the fused steps of few sequences read them as 8 bits.
    """

    def __init__(
        self,
        model: HybridLM,
        batch_size: int | Sequence[int],
        max_context: int,
        sampling: Sampling = GREEDY,
        weights: WeightFormat = "full",
    ) -> None:
        weight = as_served(model, weights).embedding.weight
        sizes = sorted({batch_size} if isinstance(batch_size, int) else set(batch_size))
        self.model, self.max_context = model, max_context
        cache = Cache.allocate(model.architecture, sizes[-1], max_context, weight.device, weight.dtype)
        tokens_B = torch.zeros(sizes[-1], dtype=torch.int64, device=weight.device)
        self.prefix = model.prefix_states()
        self.sampler = Sampler(sampling, weight.device)
        self.decode_graphs = [
            DecodeGraph(model, cache.first(size), tokens_B[:size], self.sampler, int8=weights == "int8")
            for size in sizes
        ]
        self.prefills = {size: Prefill(model, cache.first(size), self.prefix) for size in sizes}
        self.decode_graph = self.decode_graphs[-1]  # the one of the last prefill
        self.sequences = sizes[-1]  # of the last prefill
        self.context = 0  # text tokens in the cache, known without asking the device

    @property
    def cache(self) -> Cache:
        return self.decode_graph.cache

    @property
    def tokens_B(self) -> Tensor:
        return self.decode_graph.tokens_B

    @property
    def backend(self) -> str:
        return self.decode_graph.backend

    @property
    def cuda_graph(self) -> torch.cuda.CUDAGraph | None:
        return self.decode_graph.cuda_graph

    @property
    def logits_BV(self) -> Tensor:
        """Logits [B, V] of the last step, in a buffer that the next one overwrites."""
        return self.decode_graph.logits_BV

    def prefill(self, tokens_BT: Tensor) -> Tensor:
        """Start over on prompts [B, T]; the first generated tokens [B]. ValueError if they do not fit."""
        batch, length = tokens_BT.shape
        fitting = [graph for graph in self.decode_graphs if len(graph.tokens_B) >= batch]
        if not fitting or not 0 < length <= self.max_context:
            raise ValueError(
                f"prompts are [{batch}, {length}]: this engine takes up to [{len(self.decode_graphs[-1].tokens_B)}, "
                f"{self.max_context}]; build one with a larger batch_size or max_context"
            )
        self.decode_graph, self.sequences = fitting[0], batch
        surplus = len(self.tokens_B) - batch  # rows without a sequence repeat the last one
        rows_BT = torch.cat([tokens_BT, tokens_BT[-1:].expand(surplus, -1)]) if surplus else tokens_BT
        with torch.inference_mode():
            self.tokens_B.copy_(self.sampler(self.prefills[len(self.tokens_B)](rows_BT)))
            self.decode_graph.begin()
        self.context = length
        return self.tokens_B[:batch].clone()

    def step(self) -> Tensor:
        """Feed back the last tokens; the next ones [B]. ValueError when the context is full."""
        if self.context == self.max_context:
            raise ValueError(f"the context of {self.max_context} tokens is full: build the engine with a larger one")
        self.advance()
        self.context += 1
        return self.tokens_B[: self.sequences].clone()

    @torch.inference_mode()
    def advance(self) -> None:
        """One decode step on fixed addresses; nothing waits for the device."""
        self.decode_graph.advance()

    def generate(self, tokens_BT: Tensor, max_new_tokens: int) -> Tensor:
        """Continue prompts [B, T] by `max_new_tokens` tokens: [B, max_new_tokens]."""
        tokens = [self.prefill(tokens_BT)]
        tokens += [self.step() for _ in range(max_new_tokens - 1)]
        return torch.stack(tokens, dim=1)

"""The decode step for one batch size on the first rows of a cache; on CUDA one captured graph."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flashslm.inference.sampling import Sampler
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.ops.kernels import backend_of

if TYPE_CHECKING:
    from flashslm.inference.fused.decoder import FusedDecoder
    from flashslm.inference.fused.step_plan import StepPlan

WARM_UP_STEPS = 3  # compile and choose algorithms before a capture


class DecodeGraph:
    """One step of `len(tokens_B)` sequences, sampling included, on fixed addresses.

    Its backend is `kernels.decode`: fused kernels, with `int8` on weights of 8 bits, or the model's own operators.
    `plan` replaces the usual plan of a fused step.
    """

    def __init__(
        self,
        model: HybridLM,
        cache: Cache,
        tokens_B: Tensor,
        sampler: Sampler,
        int8: bool = False,
        plan: "StepPlan | None" = None,
    ) -> None:
        self.model, self.cache, self.tokens_B, self.sampler = model, cache, tokens_B, sampler
        self.backend = backend_of("decode", model.embedding.weight)
        self.decoder = self._fused_decoder(int8, plan) if self.backend == "fused" else None
        # Of the last step, in a buffer that the next one overwrites.
        self.logits_BV = model.embedding.weight.new_zeros(len(tokens_B), model.architecture.vocab_size)
        self.cuda_graph = self._capture() if tokens_B.device.type == "cuda" else None

    def begin(self, row: int | None = None) -> None:
        """To be called after a prefill, of one row or (None) of all."""
        if self.decoder is not None:
            self.decoder.begin(row)

    def advance(self) -> None:
        """One step; nothing waits for the device."""
        if self.cuda_graph is not None:
            self.cuda_graph.replay()
        else:
            self._step()

    def _fused_decoder(self, int8: bool, plan: "StepPlan | None") -> "FusedDecoder":
        from flashslm.inference.fused.decoder import FusedDecoder

        return FusedDecoder(self.model, self.cache, int8, plan)

    def _step(self) -> None:
        if self.decoder is None:
            self.logits_BV = self.model.decode_step(self.tokens_B, self.cache)
        else:
            self.logits_BV = self.decoder.decode_step(self.tokens_B)
        if self.decoder is not None and self.sampler.sampling.is_greedy:
            self.decoder.choose_greedily(self.tokens_B)
        else:
            self.tokens_B.copy_(self.sampler(self.logits_BV))

    @torch.inference_mode()
    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record a step; the states it leaves behind are overwritten by the next prefill."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UP_STEPS):
                self.cache.lengths_B.zero_()
                self._step()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        graph.register_generator_state(self.sampler.generator)
        with torch.cuda.graph(graph):
            self._step()
        return graph

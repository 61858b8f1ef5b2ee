"""DecodeEngine: prefill and decode a batch on static caches; on CUDA a decode step is one graph, sampling inside."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from flashslm.inference.sampling import GREEDY, Sampler, Sampling
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.ops.kernels import form

if TYPE_CHECKING:
    from flashslm.inference.fused.decoder import FusedDecoder

PREFILL_CHUNK = 512  # tokens; bounds what a long prompt needs besides its cache
PREFILL_CHUNK_CUDA = 4096
WARM_UP_STEPS = 3  # compile and choose algorithms before a capture


class DecodeEngine:
    """Decodes `batch_size` sequences of equal prompt length, up to `max_context` text tokens each.

    The meta tokens' states are computed once, here, and copied at every prefill. The step's form is `kernels.decode`:
    fused Triton kernels, or the model's own operators.
    """

    def __init__(self, model: HybridLM, batch_size: int, max_context: int, sampling: Sampling = GREEDY) -> None:
        weight = model.embedding.weight
        self.model, self.max_context = model, max_context
        self.cache = Cache.allocate(model.architecture, batch_size, max_context, weight.device, weight.dtype)
        self.prefix = model.prefix_states()
        self.sampler = Sampler(sampling, weight.device)
        self.tokens_B = torch.zeros(batch_size, dtype=torch.int64, device=weight.device)
        self.context = 0  # text tokens in the cache, known without asking the device
        self.form = form("decode", weight)
        self._decoder = self._fused_decoder() if self.form == "triton" else None
        self.graph = self._capture() if weight.device.type == "cuda" else None

    def prefill(self, tokens_BT: Tensor) -> Tensor:
        """Start afresh on prompts [B, T]; the first generated tokens [B]. ValueError if they do not fit."""
        batch, length = tokens_BT.shape
        if batch != self.tokens_B.shape[0] or not 0 < length <= self.max_context:
            raise ValueError(
                f"prompts are [{batch}, {length}]: this engine takes [{self.tokens_B.shape[0]}, 1..{self.max_context}]"
            )
        device = self.tokens_B.device
        chunk = PREFILL_CHUNK_CUDA if device.type == "cuda" else PREFILL_CHUNK
        with torch.inference_mode():
            self.cache.reset_from_prefix(self.prefix, self.model.architecture.num_meta_tokens)
            for chunk_BT in tokens_BT.to(device).split(chunk, dim=1):
                logits_BV = self.model.prefill(chunk_BT, self.cache)
            self.tokens_B.copy_(self.sampler(logits_BV))
            if self._decoder is not None:
                self._decoder.begin()
        self.context = length
        return self.tokens_B.clone()

    def step(self) -> Tensor:
        """Feed back the last tokens; the next ones [B]. ValueError when the context is full."""
        if self.context == self.max_context:
            raise ValueError(f"the context of {self.max_context} tokens is full: build the engine with a larger one")
        self.advance()
        self.context += 1
        return self.tokens_B.clone()

    @torch.inference_mode()
    def advance(self) -> None:
        """One decode step on fixed addresses; nothing waits for the device."""
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()

    @property
    def logits_BV(self) -> Tensor:
        """Logits [B, V] of the last step, in a buffer that the next one overwrites; fused form only."""
        if self._decoder is None:
            raise ValueError("the model's own step keeps no logits: read them from HybridLM.decode_step")
        return self._decoder.logits_BV

    def generate(self, tokens_BT: Tensor, max_new_tokens: int) -> Tensor:
        """Continue prompts [B, T] by `max_new_tokens` tokens: [B, max_new_tokens]."""
        tokens = [self.prefill(tokens_BT)]
        tokens += [self.step() for _ in range(max_new_tokens - 1)]
        return torch.stack(tokens, dim=1)

    def _fused_decoder(self) -> "FusedDecoder":
        from flashslm.inference.fused.decoder import FusedDecoder

        return FusedDecoder(self.model, self.cache)

    def _step(self) -> None:
        if self._decoder is None:
            self.tokens_B.copy_(self.sampler(self.model.decode_step(self.tokens_B, self.cache)))
            return
        logits_BV = self._decoder.decode_step(self.tokens_B)
        if self.sampler.sampling.temperature == 0:
            self._decoder.choose_greedily(self.tokens_B)
        else:
            self.tokens_B.copy_(self.sampler(logits_BV))

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

"""Greedy decoding in transformers: Qwen3 with random weights, a static cache and a compiled step."""

import torch
from torch import Tensor

from flashslm.benchmarking.case import Case
from flashslm.benchmarking.qwen3_shape import qwen3_config

ALIGNMENT = 64  # places of the cache: of other lengths the fast attention kernels take no mask, and a slow one runs
CAPTURE_STEPS = 3  # run before a capture: they compile, and their places in the cache are extra ones


class TransformersDecoder:
    """Greedy decoding with an eager prefill and, on CUDA, a compiled step."""

    def __init__(self, case: Case) -> None:
        import transformers

        config = qwen3_config(case.architecture)
        with torch.device(case.device):
            self.model = transformers.AutoModelForCausalLM.from_config(config, dtype=case.torch_dtype).eval()
        places = -(-(case.capacity + CAPTURE_STEPS) // ALIGNMENT) * ALIGNMENT
        self.cache = transformers.StaticCache(config=config, max_cache_len=places)
        self.tokens_B1 = torch.zeros(case.batch, 1, dtype=torch.int64, device=case.device)
        self.step = self._step
        self.graph: torch.cuda.CUDAGraph | None = None
        how = "eager"
        self.captures = case.device == "cuda"
        if self.captures:
            # The full graph, so that a break is an error and not a slow peer. It is captured here and not by
            # mode="reduce-overhead", which leaves CUDA graphs out without an error where it cannot use them.
            self.step = torch.compile(self._step, dynamic=False, fullgraph=True)
            how = "torch.compile, one CUDA graph per step"
        self.engine = f"transformers {transformers.__version__} (static cache, {how})"

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor) -> Tensor:
        self.cache.reset()
        output = self.model(
            input_ids=tokens_BT.to(self.tokens_B1.device), past_key_values=self.cache, use_cache=True, logits_to_keep=1
        )
        self.tokens_B1.copy_(output.logits[:, -1].argmax(-1, keepdim=True))
        return self.tokens_B1[:, 0].clone()

    @torch.no_grad()
    def advance(self) -> None:
        if self.captures and self.graph is None:
            self.graph = self._capture()
        if self.graph is not None:
            self.graph.replay()
        else:
            self.tokens_B1.copy_(self.step(self.tokens_B1))

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record a step on the cache that the first prefill has allocated; all it changes, it changes in place."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(CAPTURE_STEPS):
                self.tokens_B1.copy_(self.step(self.tokens_B1))
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.tokens_B1.copy_(self.step(self.tokens_B1))
        return graph

    def _step(self, tokens_B1: Tensor) -> Tensor:
        output = self.model(input_ids=tokens_B1, past_key_values=self.cache, use_cache=True)
        next_B1: Tensor = output.logits[:, -1].argmax(-1, keepdim=True)
        return next_B1

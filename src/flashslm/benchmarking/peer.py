"""The same decoding in transformers: Qwen3 with random weights, a static cache and a compiled step."""

from dataclasses import replace
from typing import Any

import torch
from pydantic import ConfigDict
from torch import Tensor

from flashslm.benchmarking import clock, memory
from flashslm.benchmarking.case import Case, prompts
from flashslm.benchmarking.clock import DecodeTimes
from flashslm.models.architecture import Architecture
from flashslm.models.presets import PRESETS, preset

LIBRARY = "hf"
DEFAULT_PRESET = "qwen3-0.6b"  # what the paper's hybrids of about 1B are compared with
ALIGNMENT = 64  # places of the cache: of other lengths the fast attention kernels take no mask, and a slow one runs
CAPTURE_STEPS = 3  # run before a capture: they compile, and their places in the cache are extra ones


class PeerResult(DecodeTimes):
    """Times of `preset`'s shape in the library that `engine` names."""

    model_config = ConfigDict(frozen=True)

    preset: str
    engine: str
    tokens_per_s: float


def find_peer(spec: str, case: Case) -> Case:
    """The case that `spec` puts beside `case`: `hf`, or `hf:PRESET` for another shape of the same context and batch.

    `hf` alone is the same shape where transformers' Qwen3 has it, else qwen3-0.6b. ValueError says what is allowed.
    """
    library, _, name = spec.partition(":")
    possible = [known for known, architecture in PRESETS.items() if is_qwen3(architecture)]
    if library != LIBRARY or (name and name not in possible):
        raise ValueError(f"peer '{spec}' is unknown: give {LIBRARY}, or {LIBRARY}:PRESET with {', '.join(possible)}")
    if not name and is_qwen3(case.architecture):
        return case
    name = name or DEFAULT_PRESET
    return replace(case, preset=name, architecture=preset(name))


def is_qwen3(a: Architecture) -> bool:
    """Whether transformers' Qwen3 class has this shape."""
    return a.operators == "AF" * (len(a.operators) // 2) and a.qk_norm and not a.num_meta_tokens


def measure_peer(case: Case) -> PeerResult:
    """Time it as ours is timed; compiling is part of the warm-up."""
    try:
        return _measure(case)
    finally:
        if case.device == "cuda":
            torch._dynamo.reset()  # its graphs hold memory, and a second shape would be compiled as a dynamic one
        memory.release(case.device)


def _measure(case: Case) -> PeerResult:
    decoder = TransformersDecoder(case)
    times = clock.time_decoder(decoder, prompts(case), case.new_tokens, case.repeats, case.device)
    return PeerResult(
        **times.model_dump(),
        preset=case.preset,
        engine=decoder.engine,
        tokens_per_s=1e3 * case.batch / times.tpot_ms_mean,
    )


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


def qwen3_config(a: Architecture) -> Any:
    """transformers' Qwen3Config of this shape."""
    from transformers import Qwen3Config

    return Qwen3Config(
        vocab_size=a.vocab_size,
        hidden_size=a.hidden_size,
        intermediate_size=a.ffn_size,
        num_hidden_layers=a.operators.count("A"),
        num_attention_heads=a.num_heads,
        num_key_value_heads=a.num_kv_heads,
        head_dim=a.head_dim,
        max_position_embeddings=a.max_position_embeddings,
        rms_norm_eps=a.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": a.rope_theta},
        tie_word_embeddings=True,
    )

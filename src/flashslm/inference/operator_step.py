"""One operator's decode step, and a whole one, for the latency table: the code the engine runs, with random weights.

On CUDA a call replays a graph, as the engine does.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count, cycle

import torch

from flashslm.config import WeightFormat
from flashslm.inference.decode_graph import WARM_UP_STEPS
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.int8_model import as_served
from flashslm.inference.sampling import GREEDY, Sampling
from flashslm.models.architecture import Architecture
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.models.random_weights import random_model
from flashslm.ops.kernels import backend_of

StepCall = Callable[[], None]

# On CUDA the context grows this many tokens before it is set back, so that a call launches the graph and nothing else.
STEPS_BETWEEN_RESETS = 32


@dataclass(frozen=True)
class CapturedStep:
    """A call that replays a graph. `step` keeps the tensors alive that the graph reads and writes."""

    graph: torch.cuda.CUDAGraph
    step: StepCall

    def __call__(self) -> None:
        self.graph.replay()


def build_operator_step(  # noqa: PLR0913 - the key of a measurement
    architecture: Architecture,
    operator: str,
    batch: int,
    context: int,
    device: torch.device | str,
    dtype: torch.dtype,
    copies: int = 1,
    passes: int = 1,
    weights: WeightFormat = "full",
) -> StepCall:
    """A call that runs one token of `batch` sequences through layers (norm, operator, residual) at `context`.

    `context` counts text tokens; the meta tokens come before them. `copies` layers with weights and states of their own
    run in a row, as in a model whose weights do not stay in the device's cache, and `passes` times over: divide the
    time by both. The cache is filled with random values and the position does not advance.
    """
    model = random_model(architecture.model_copy(update={"operators": operator * copies}), device, dtype)
    step = _layers_step(model, _filled_cache(model, batch, context), weights)
    if torch.device(device).type == "cuda":
        return _captured(step, passes)
    return step


def build_head_step(
    architecture: Architecture,
    batch: int,
    device: torch.device | str,
    dtype: torch.dtype,
    sampling: Sampling = GREEDY,
    copies: int = 1,
    weights: WeightFormat = "full",
) -> StepCall:
    """A call that runs a decode step without its layers: embedding, positions, final norm, head, sampling.

    Successive calls take turns with `copies` engines, each with an embedding of its own.
    """
    headless = architecture.model_copy(update={"operators": ""})
    engines = [
        build_decode_steps(headless, [0], batch, device, dtype, sampling, weights=weights)[0] for _ in range(copies)
    ]
    turns = cycle(engines)

    def step() -> None:
        next(turns)()

    return step


def build_decode_steps(
    architecture: Architecture,
    contexts: Sequence[int],
    batch: int,
    device: torch.device | str,
    dtype: torch.dtype,
    sampling: Sampling = GREEDY,
    max_context: int = 0,
    weights: WeightFormat = "full",
) -> list[StepCall]:
    """Calls that run the engine's whole decode step, one call per context (text tokens), on one engine.

    Its cache has random values and room for `max_context` text tokens, or for the largest of `contexts`. The calls
    share it: on CUDA those of one context are to be made in a row.
    """
    # A decode step sees no difference between meta tokens and as many text tokens, whose states need no prefill.
    meta = architecture.num_meta_tokens
    model = random_model(architecture.model_copy(update={"num_meta_tokens": 0}), device, dtype)
    steps = _steps_between_resets(model)
    engine = DecodeEngine(model, batch, meta + max(max_context, *contexts, 0) + steps, sampling, weights)
    _fill(engine.cache)
    return [_held_at(engine, meta + context, steps) for context in contexts]


def _held_at(engine: DecodeEngine, length: int, steps: int) -> StepCall:
    calls = count()

    @torch.inference_mode()
    def step() -> None:
        if next(calls) % steps == 0:
            engine.cache.lengths_B.fill_(length)
        engine.advance()

    return step


def _layers_step(model: HybridLM, cache: Cache, weights: WeightFormat) -> StepCall:
    """A token through all layers, by the backend that the engine takes."""
    as_served(model, weights)
    weight = model.embedding.weight
    if backend_of("decode", weight) == "fused":
        from flashslm.inference.fused.decoder import FusedDecoder

        decoder = FusedDecoder(model, cache, int8=weights == "int8")
        _embed_a_token(decoder.decode_step, cache)
        return decoder.layers_step
    x_BD = torch.randn(cache.lengths_B.shape[0], weight.shape[1], device=weight.device, dtype=weight.dtype)
    position = cache.next_position()

    @torch.inference_mode()
    def step() -> None:
        y_BD = x_BD
        for layer, state in zip(model.residual_layers, cache.layers, strict=True):
            y_BD = layer.step(y_BD, state, position)

    return step


@torch.inference_mode()
def _embed_a_token(decode_step: Callable[[torch.Tensor], object], cache: Cache) -> None:
    """Put an embedding into the residual stream, which is zero at first: zeros take less power than numbers."""
    decode_step(torch.zeros_like(cache.lengths_B))
    cache.lengths_B -= 1


@torch.inference_mode()
def _captured(step: StepCall, passes: int) -> CapturedStep:
    """Compile by running the step on a side stream, then record it `passes` times."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(WARM_UP_STEPS):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(passes):
            step()
    return CapturedStep(graph, step)


def _filled_cache(model: HybridLM, batch: int, context: int) -> Cache:
    """A cache as after `context` text tokens, random values in it, with as many free slots as an engine's."""
    weight, steps = model.embedding.weight, _steps_between_resets(model)
    cache = Cache.allocate(model.architecture, batch, context + steps, weight.device, weight.dtype)
    _fill(cache)
    cache.lengths_B.fill_(cache.slots - steps)
    return cache


def _steps_between_resets(model: HybridLM) -> int:
    return STEPS_BETWEEN_RESETS if model.embedding.weight.device.type == "cuda" else 1


def _fill(cache: Cache) -> None:
    for tensor in (tensor for state in cache.layers for tensor in state):
        tensor.normal_()

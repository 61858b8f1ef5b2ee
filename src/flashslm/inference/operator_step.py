"""One operator's decode step, and everything else of a step, for the latency table: the code the engine runs."""

from collections.abc import Callable

import torch

from flashslm.inference.engine import DecodeEngine
from flashslm.inference.sampling import GREEDY, Sampling
from flashslm.models.architecture import Architecture
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM


def build_operator_step(
    architecture: Architecture,
    operator: str,
    batch: int,
    context: int,
    device: torch.device | str,
    dtype: torch.dtype,
    copies: int = 1,
) -> Callable[[], None]:
    """A call that runs one token of `batch` sequences through a layer (norm, operator, residual) at `context`.

    `context` counts text tokens; the meta tokens come before them. With `copies` > 1 that many layers with weights of
    their own run in a row, as in a model whose weights do not stay in the device's cache: divide the time by it. The
    cache is filled with random values and the position does not advance.
    """
    model = HybridLM.build(architecture.model_copy(update={"operators": operator * copies}), device, dtype)
    cache = _filled_cache(model, batch, context)
    x_BD = torch.randn(batch, architecture.hidden_size, device=device, dtype=dtype)
    position = cache.next_position()

    @torch.inference_mode()
    def step() -> None:
        y_BD = x_BD
        for layer, state in zip(model.residual_layers, cache.layers, strict=True):
            y_BD = layer.step(y_BD, state, position)

    return step


def build_head_step(
    architecture: Architecture,
    batch: int,
    device: torch.device | str,
    dtype: torch.dtype,
    sampling: Sampling = GREEDY,
) -> Callable[[], None]:
    """A call that runs a decode step without its layers: embedding, positions, final norm, head, sampling."""
    model = HybridLM.build(architecture.model_copy(update={"operators": ""}), device, dtype)
    engine = DecodeEngine(model, batch, max_context=1, sampling=sampling)

    @torch.inference_mode()
    def step() -> None:
        engine.cache.lengths_B.zero_()  # so that it can run for ever
        engine.advance()

    return step


def _filled_cache(model: HybridLM, batch: int, context: int) -> Cache:
    """A cache as after `context` text tokens, random values in it, with room for one more token."""
    weight = model.embedding.weight
    cache = Cache.allocate(model.architecture, batch, context + 1, weight.device, weight.dtype)
    for tensor in (tensor for state in cache.layers for tensor in state):
        tensor.normal_()
    cache.lengths_B.fill_(cache.slots - 1)
    return cache

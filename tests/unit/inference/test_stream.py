"""The residual stream of the fused decoder: a layer without fused kernels adds to the exact sum."""

import pytest
import torch

from flashslm.inference.fused.stream import Stream, step_unfused
from flashslm.models.architecture import Architecture
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import OPERATORS


@pytest.mark.parametrize("operator", OPERATORS)
def test_a_layer_without_kernels_keeps_the_exact_stream(architecture: Architecture, operator: str) -> None:
    model = HybridLM.build(architecture.model_copy(update={"operators": operator * 2}), dtype=torch.bfloat16).eval()
    cache, twin = (Cache.allocate(model.architecture, 2, 8, dtype=torch.bfloat16) for _ in range(2))
    exact_BD = torch.randn(2, architecture.hidden_size)  # not representable in bf16
    stream = Stream(exact_BD.clone(), exact_BD.bfloat16())
    with torch.no_grad():
        for layer, state, other in zip(model.residual_layers, cache.layers, twin.layers, strict=True):
            position = cache.next_position()
            exact_BD = exact_BD + layer.operator.step(layer.norm(exact_BD.bfloat16()), other, position)
            step_unfused(layer, stream, state, position)
    assert torch.equal(stream.exact, exact_BD) and not torch.equal(stream.exact, exact_BD.bfloat16().float())
    assert torch.equal(stream.rounded, exact_BD.bfloat16())

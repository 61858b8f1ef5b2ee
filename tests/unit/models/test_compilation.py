"""The parts of every operator's layer can be compiled whole and once, and compute what they compute uncompiled."""

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager

from flashslm.models.hybrid import Layer


@pytest.mark.parametrize("operators", ["DFM", "AFW", "GFL", "DFMDFM"])
def test_parts_compile_without_a_break(operators, make_model, tokens_BT, monkeypatch):
    model = make_model(operators=operators, qk_norm=True)

    def gradients():
        model.zero_grad()
        model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
        return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}

    plain, graphs = gradients(), []

    def backend(graph, inputs, **options):
        graphs.append(graph)
        return aot_eager(graph, inputs)

    for part in ("_transform_both", "_enter_both", "_leave_both"):
        whole = getattr(Layer, part).__wrapped__
        monkeypatch.setattr(Layer, part, torch.compile(whole, dynamic=False, fullgraph=True, backend=backend))
    with torch._dynamo.config.patch(recompile_limit=64):
        compiled = gradients()
    assert len(graphs) == 5, "one for each part of an operator, with the text's stream and the meta tokens'"
    for name, gradient in plain.items():
        torch.testing.assert_close(compiled[name], gradient, rtol=1e-4, atol=1e-5)

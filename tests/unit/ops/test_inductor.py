"""How parts of a layer are compiled, whichever thread trains."""

from contextvars import Context
from typing import Any

import pytest
import torch
from torch import Tensor, _dynamo
from torch._functorch._aot_autograd.utils import make_boxed_func
from torch._inductor import compile_fx, config

from flashslm.ops.fused.inductor import VARIANTS, compiled


def test_what_has_wrong_gradients_is_off_in_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    settings, gradients = list[bool](), list[Tensor | None]()

    def look(graph: torch.fx.GraphModule, *args: Any, **options: Any) -> Any:
        settings.append(config.triton.mix_order_reduction)
        return make_boxed_func(graph.forward)  # as of a graph that has nothing to compile

    monkeypatch.setattr(compile_fx, "_compile_fx_inner", look)
    double = compiled(lambda x: 2 * x)

    def train() -> None:
        x = torch.randn(3, requires_grad=True)
        double(x).sum().backward()
        gradients.append(x.grad)

    Context().run(train)  # without what other code has set, as a thread begins: torch 2.11 crashes after real ones
    assert settings == [False, False], "of the forward and of the backward pass"
    torch.testing.assert_close(gradients, [torch.full((3,), 2.0)])


def test_every_thread_compiles_as_many_variants() -> None:
    """A training in a second thread would end at its ninth shape."""

    def limits() -> tuple[int, int]:
        compiled(torch.neg)
        return _dynamo.config.recompile_limit, _dynamo.config.accumulated_recompile_limit

    for found in (limits(), Context().run(limits)):
        assert min(found) >= VARIANTS

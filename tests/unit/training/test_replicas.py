from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from flashslm.training.replicas import MeanGradients


class Branches(nn.Module):
    """Of its parameters the backward pass makes the gradients in another order, and one has none."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = nn.Parameter(torch.tensor(2.0)), nn.Parameter(torch.tensor(3.0))
        self.unused, self.middle = nn.Parameter(torch.tensor(5.0)), nn.Parameter(torch.tensor(7.0))

    def forward(self, x: Tensor) -> Tensor:
        return ((x * self.last).sin() * self.middle).sin() * self.first


@pytest.fixture
def group() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_gradients_are_sent_once_in_the_order_of_the_parameters(group: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, send = Branches(), dist.all_reduce
    sent: list[Tensor] = []

    def noted(tensor: Tensor, *given: Any, **named: Any) -> Any:
        sent.append(tensor)
        return send(tensor, *given, **named)

    monkeypatch.setattr(dist, "all_reduce", noted)
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    means = MeanGradients(model)
    for _ in range(2):
        expected = torch.autograd.grad(model(torch.tensor(0.5)), [model.middle, model.first, model.last])
        model(torch.tensor(0.5)).backward()
        assert [tensor.data_ptr() for tensor in sent] == [
            parameter.grad.data_ptr() for parameter in (model.middle, model.first, model.last)
        ]
        torch.testing.assert_close(sent, [gradient / 4 for gradient in expected])
        model.zero_grad()
        sent.clear()
    means.begin(on=False)
    model(torch.tensor(0.5)).backward()
    assert sent == [] and model.last.grad is not None


def test_a_backward_pass_that_failed_leaves_nothing_to_the_next(group: None) -> None:
    class Failing(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            raise RuntimeError("a kernel failed")

    model, sent = Branches(), list[Tensor]()
    means = MeanGradients(model)
    with pytest.raises(RuntimeError, match="a kernel failed"):
        (model.first * (Failing.apply(model.last) * model.middle).sin()).backward()
    means.begin(on=True)
    with pytest.MonkeyPatch.context() as patch:
        send = dist.all_reduce
        patch.setattr(dist, "all_reduce", lambda tensor, *a, **k: (sent.append(tensor), send(tensor, *a, **k))[1])
        model(torch.tensor(0.5)).backward()
    assert len(sent) == 3, "one for each parameter that has a gradient"

"""Joined projections: rows that fill a multiple, and a DeltaNet that is given them, as on a GPU."""

import pytest
import torch
from torch import Tensor, nn

from flashslm.models import deltanet
from flashslm.models.interface import Sequence
from flashslm.models.linear import ALIGNED, join_rows


@pytest.mark.parametrize(("rows", "filled"), [((8, 8), 16), ((8, 9), 24), ((31,), 32), ((16, 16, 16, 4), 56)])
def test_joined_rows_fill_a_multiple_with_zeros(rows, filled):
    weights = [nn.Parameter(torch.randn(count, 3)) for count in rows]
    joined, given = join_rows(weights, ALIGNED), sum(rows)
    assert joined.shape == (filled, 3)
    assert torch.equal(joined[:given], torch.cat(weights)) and not joined[given:].any()
    assert torch.equal(join_rows(weights), joined[:given])
    joined.sum().backward()
    assert all(torch.equal(weight.grad, torch.ones_like(weight)) for weight in weights)


def filled(x: Tensor, *layers: nn.Linear, aligned: bool = False) -> Tensor:
    """What training on a GPU does."""
    return x @ join_rows([layer.weight for layer in layers], ALIGNED if aligned else 1).T


@pytest.mark.parametrize("operators", ["D", "G"])
@pytest.mark.parametrize("num_heads", [3, 4])
def test_a_deltanet_does_not_read_what_fills_its_rows(operators, num_heads, make_model, monkeypatch):
    layer = make_model(operators=operators, num_heads=num_heads, num_kv_heads=1, head_dim=8).residual_layers[0].operator
    x = torch.randn(2, 9, layer.q_proj.in_features, dtype=torch.float64, requires_grad=True)
    sequence = Sequence((torch.zeros(9, 1, 4), torch.zeros(9, 1, 4)))

    def found() -> list[Tensor]:
        outputs, _ = layer(x, None, sequence)
        return [outputs, *torch.autograd.grad(outputs.square().sum(), [x, *layer.parameters()])]

    plain = found()
    monkeypatch.setattr(deltanet, "project_together", filled)
    channels = 3 * layer.q_proj.out_features + num_heads
    assert layer.project(x, sequence.angles)[0].shape[-1] == channels + -channels % ALIGNED > channels
    for one, other in zip(found(), plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)

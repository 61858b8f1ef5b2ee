import pytest
import torch
from torch import nn

from flashslm.training.weight_norm import mean_weight_norm, project_weights_, weight_norms
from tests.unit.training.tiny import model


def project_naive_(net: nn.Module, axes: dict[str, int]) -> None:
    """The specification: vector by vector."""
    for name, axis in axes.items():
        weight = net.get_parameter(name).data
        for vector in weight if axis == 1 else weight.T:
            vector /= max(float(vector.double().norm()), 1e-8)


def test_rows_that_read_and_columns_that_write_get_unit_norm() -> None:
    net = model("DFMFAF")
    project_weights_(net)
    ones = {name: torch.ones_like(norms) for name, norms in weight_norms(net).items()}
    torch.testing.assert_close(weight_norms(net), ones, atol=2e-7, rtol=0)
    reading, writing = (
        net.get_parameter("layers.1.ffn.up_proj.weight"),
        net.get_parameter("layers.1.ffn.down_proj.weight"),
    )
    hidden = net.architecture.hidden_size
    assert reading.shape[1] == hidden and torch.allclose(reading.norm(dim=1), torch.ones(reading.shape[0]))
    assert writing.shape[0] == hidden and torch.allclose(writing.norm(dim=0), torch.ones(writing.shape[1]))
    assert torch.allclose(net.embedding.weight.norm(dim=1), torch.ones(net.architecture.vocab_size))


def test_equals_the_naive_form() -> None:
    net, twin = model("DFMFAF", seed=3), model("DFMFAF", seed=3)
    project_weights_(net)
    project_naive_(twin, twin.weight_norm_axes())
    for (name, fast), naive in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(fast, naive, msg=name)


def test_everything_but_the_matrices_of_linear_layers_and_the_embedding_stays() -> None:
    net = model("DFMFAF")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    project_weights_(net)
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    matrices = {
        f"{name}.weight" for name, module in net.named_modules() if isinstance(module, nn.Linear | nn.Embedding)
    }
    assert changed == matrices == set(net.weight_norm_axes())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_zero_vectors_stay_zero_in_any_dtype(dtype: torch.dtype) -> None:
    net = model("AF").to(dtype)
    weight = net.get_parameter("layers.0.mixer.q_proj.weight")
    weight.data[0] = 0
    project_weights_(net)
    assert weight.dtype == dtype and torch.equal(weight[0], torch.zeros_like(weight[0]))
    tolerance = torch.finfo(dtype).eps if dtype != torch.bfloat16 else 2**-8  # each entry is rounded
    assert (weight[1:].double().norm(dim=1) - 1).abs().max() <= 2 * tolerance


def test_mean_norm_weighs_every_vector_alike() -> None:
    net = model("AF")
    vectors = [
        vector
        for name, axis in net.weight_norm_axes().items()
        for vector in (net.get_parameter(name) if axis == 1 else net.get_parameter(name).T)
    ]
    expected = torch.stack([vector.norm() for vector in vectors]).mean()
    torch.testing.assert_close(mean_weight_norm(net), expected.detach())

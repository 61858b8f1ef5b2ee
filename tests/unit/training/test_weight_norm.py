import math

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from flashslm.models.operator_spec import OPERATOR_SPECS
from flashslm.models.unit_vectors import UnitVectors
from flashslm.training.weight_norm import mean_weight_norm, project_weights_, weight_norms
from tests.unit.training import tiny
from tests.unit.training.tiny import AXES, model


def vectors_naive(weight: Tensor, vectors: UnitVectors) -> list[Tensor]:
    """The specification: views of a matrix, vector by vector."""
    whole = list(weight if vectors.axis == 1 else weight.T)
    return [piece for vector in whole for piece in vector.split(vectors.heads or len(vector))]


def project_naive_(net: nn.Module, covered: dict[str, UnitVectors]) -> None:
    for name, vectors in covered.items():
        for vector in vectors_naive(net.get_parameter(name).data, vectors):
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


@pytest.mark.parametrize("axes", [{}, AXES], ids=["usual", "chosen"])
def test_equals_the_naive_form(axes: dict[str, str]) -> None:
    net, twin = model("DFMFAFLFGF", seed=3), model("DFMFAFLFGF", seed=3)
    project_weights_(net, axes)
    project_naive_(twin, twin.unit_vectors(axes))
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
    assert changed == matrices == set(net.unit_vectors({}))


@pytest.mark.parametrize("letter", OPERATOR_SPECS)
def test_heads_fill_the_side_of_a_layer_that_is_not_the_streams(letter: str) -> None:
    net, spec = model(letter), OPERATOR_SPECS[letter]
    for name, sizes in spec.heads.items():
        found = net.unit_vectors({f"{letter}.{name}": "heads"})
        ((parameter, vectors),) = ((p, v) for p, v in found.items() if v.heads)
        weight = net.get_parameter(parameter)
        assert parameter.endswith(f".{name}.weight") and vectors.heads == sizes(net.architecture)
        assert weight.shape[vectors.axis] == sum(vectors.heads)
        assert weight.shape[1 - vectors.axis] == net.architecture.hidden_size


def test_a_kind_that_the_recipe_excludes_stays() -> None:
    net = model("DFAF")
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    project_weights_(net, {"D.b_proj": "none", "embedding": "none", "F.up_proj": "none"})
    kept = {name for name in net.unit_vectors({}) if torch.equal(net.get_parameter(name), before[name])}
    expected = {"embedding.weight", "layers.0.mixer.b_proj.weight"}
    assert kept == expected | {f"layers.{index}.ffn.up_proj.weight" for index in (1, 3)}


@pytest.mark.parametrize(
    "axes, message",
    [
        ({"Q.q_proj": "rows"}, r"weight_norm_axes has 'Q.q_proj': allowed are embedding, D.q_proj"),
        ({"A.conv": "rows"}, r"weight_norm_axes has 'A.conv'"),
        ({"F.up_proj": "heads"}, r"weight_norm_axes.F.up_proj is 'heads', but it has none"),
        ({"embedding": "heads"}, r"weight_norm_axes.embedding is 'heads'"),
        (
            {"embedding": "none", "M.in_proj": "none", "M.out_proj": "none"},
            r"nothing of a model of M and the embedding to normalise.*set weight_norm to \[off\]",
        ),
    ],
)
def test_axes_that_no_layer_has_are_refused(axes: dict[str, str], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        tiny.config(weight_norm_axes=axes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("axis", ["rows", "heads"])
def test_zero_vectors_stay_zero_in_any_dtype(dtype: torch.dtype, axis: str) -> None:
    net = model("AF").to(dtype)
    name, axes = "layers.0.mixer.q_proj.weight", {"A.q_proj": axis}
    weight, vectors = net.get_parameter(name), net.unit_vectors(axes)[name]
    vectors_naive(weight.data, vectors)[0].zero_()
    project_weights_(net, axes)
    first, *others = vectors_naive(weight.detach(), vectors)
    assert weight.dtype == dtype and torch.equal(first, torch.zeros_like(first))
    tolerance = torch.finfo(dtype).eps if dtype != torch.bfloat16 else 2**-8  # each entry is rounded
    assert all(abs(float(vector.double().norm()) - 1) <= 2 * tolerance for vector in others)


@pytest.mark.parametrize("axes", [{}, AXES], ids=["usual", "chosen"])
def test_mean_norm_weighs_every_vector_alike(axes: dict[str, str]) -> None:
    net = model("AFM")
    covered = net.unit_vectors(axes)
    norms = [v.norm().item() for name, those in covered.items() for v in vectors_naive(net.get_parameter(name), those)]
    assert mean_weight_norm(net, axes).item() == pytest.approx(math.fsum(norms) / len(norms), rel=1e-6)

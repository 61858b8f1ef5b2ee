"""Weight normalisation by projection after every optimizer step (Nemotron-Flash, section 3.3 and figure 6).

A matrix that reads the residual stream gets rows of unit L2 norm (case 1), one that writes to it unit columns (case 2);
either way the normalised vectors are as long as the hidden size. The embedding, which is also the head, counts as
case 1. Convolutions, norms, biases, decays and meta tokens stay as they are. `axes` are a recipe's
training.weight_norm_axes, which change this for some kinds of matrices.
"""

from collections.abc import Mapping
from functools import cache
from types import MappingProxyType
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from flashslm.models.unit_vectors import UnitVectors
from flashslm.ops.precision import compute_dtype
from flashslm.training.distributed import first_row, full_tensor, is_sharded, local_tensor, sum_over_shards

MIN_NORM = 1e-8
USUAL: Mapping[str, str] = MappingProxyType({})  # no kind of matrix differs from the paper


class WeightNormModel(Protocol):
    """A module that says which vectors of its weight matrices have unit norm."""

    def unit_vectors(self, axes: Mapping[str, str]) -> dict[str, UnitVectors]: ...

    def get_parameter(self, target: str) -> nn.Parameter: ...


class _Matrix(NamedTuple):
    """This rank's rows of a weight matrix, of which the first is the whole's `first_row`."""

    weight: Tensor
    axis: int
    heads: tuple[int, ...] = ()
    first_row: int = 0

    def square_sums(self) -> Tensor:
        """Of each vector, or of each of its heads: one long along `axis`, or as long as there are heads."""
        # Six times faster on a CPU than vector_norm, whose reduction over dimension 0 is strided there.
        squares = self.weight.to(compute_dtype(self.weight)).square()
        if not self.heads:
            return squares.sum(self.axis, keepdim=True)
        shape = [len(self.heads) if axis == self.axis else size for axis, size in enumerate(squares.shape)]
        return squares.new_zeros(shape).index_add_(self.axis, self._head_of_each(), squares)

    def divisors(self, sums: Tensor) -> Tensor:
        """What the matrix is divided by, broadcast along `axis` or as large as the matrix."""
        norms = sums.sqrt().clamp_min(MIN_NORM)
        return norms.index_select(self.axis, self._head_of_each()) if self.heads else norms

    def _head_of_each(self) -> Tensor:
        first = self.first_row if self.axis == 0 else 0
        return _head_of_each(self.heads, str(self.weight.device))[first : first + self.weight.shape[self.axis]]


@cache  # a recorded step reads them: they are never dropped
def _head_of_each(heads: tuple[int, ...], device: str) -> Tensor:
    """The head that each channel belongs to."""
    return torch.arange(len(heads)).repeat_interleave(torch.tensor(heads)).to(device)


@torch.no_grad()
def project_weights_(model: WeightNormModel, axes: Mapping[str, str] = USUAL) -> None:
    """Divide the vectors of the model's weight matrices by their L2 norms, in place.

    Norms are taken in fp32 and clamped at 1e-8, so an all-zero vector stays zero. Vectors of fp32 matrices on CUDA that
    one rank holds whole take one pass over memory, by Triton. Of matrices sharded by rows the columns' sums cross the
    ranks in one all-reduce.
    """
    vectors = model.unit_vectors(axes)
    parameters = {name: model.get_parameter(name) for name in vectors}
    one = next(iter(parameters.values()))
    together = is_sharded(one)
    fused, others = list[_Matrix](), list[_Matrix]()
    for name, those in vectors.items():
        matrix = _local(parameters[name], those)
        here = not matrix.heads and (matrix.axis == 1 or not together)
        (fused if here and _fits_kernel(matrix.weight) else others).append(matrix)
    if fused:
        from flashslm.ops.fused.weight_norm import project_triton_

        project_triton_([m.weight for m in fused], [m.axis for m in fused], one)
    if others:
        _project_(others, one)


def _local(parameter: nn.Parameter, vectors: UnitVectors) -> _Matrix:
    return _Matrix(local_tensor(parameter), *vectors, first_row=first_row(parameter) if vectors.heads else 0)


def _fits_kernel(weight: Tensor) -> bool:
    return weight.is_cuda and weight.dtype == torch.float32 and weight.is_contiguous() and weight.numel() > 0


def _project_(matrices: list[_Matrix], sharded: Tensor) -> None:
    """`sharded` is one of the model's parameters, which are all sharded alike."""
    sums = [matrix.square_sums() for matrix in matrices]
    _sum_columns_over_ranks(sums, [matrix.axis for matrix in matrices], sharded)
    divisors = [matrix.divisors(total) for matrix, total in zip(matrices, sums, strict=True)]
    torch._foreach_div_([matrix.weight for matrix in matrices], divisors)


def _sum_columns_over_ranks(sums: list[Tensor], axes: list[int], sharded: Tensor) -> None:
    """In place. Rows are whole on the rank that has them; a column is spread over the ranks that share a copy."""
    columns = [total for total, axis in zip(sums, axes, strict=True) if axis == 0]
    if not is_sharded(sharded) or not columns:
        return
    together = sum_over_shards(torch.cat([total.flatten() for total in columns]), sharded)
    for total, whole in zip(columns, together.split([total.numel() for total in columns]), strict=True):
        total.copy_(whole.view_as(total))


@torch.no_grad()
def weight_norms(model: WeightNormModel, axes: Mapping[str, str] = USUAL) -> dict[str, Tensor]:
    """L2 norms of each weight matrix' normalised vectors (one vector a matrix, on the device), by parameter name."""
    vectors = model.unit_vectors(axes)
    return {name: _norms(model.get_parameter(name), those) for name, those in vectors.items()}


def _norms(parameter: nn.Parameter, vectors: UnitVectors) -> Tensor:
    weight = full_tensor(parameter) if vectors.heads else parameter  # heads are cut apart in a plain tensor alone
    return full_tensor(_Matrix(weight, *vectors).square_sums().sqrt()).flatten()


def mean_weight_norm(model: WeightNormModel, axes: Mapping[str, str] = USUAL) -> Tensor:
    """Mean norm over all normalised vectors of all weight matrices (a scalar on the device); 1 after a projection."""
    return torch.cat(list(weight_norms(model, axes).values())).mean()

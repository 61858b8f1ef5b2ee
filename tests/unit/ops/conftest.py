"""Comparison of a naive and a fast form: outputs, states and the gradient of every input."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.closeness import exceeds

Op = Callable[..., Any]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def _run(op: Op, inputs: list[Tensor | None], documents_BT: Tensor | None) -> Iterator[Tensor]:
    """Outputs, then gradients of the floating inputs, under fixed random output gradients."""
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    # A batch-1 initial state stands for a prefix that all sequences share.
    given = [x.expand(leaves[0].shape[0], *x.shape[1:]) if i == len(leaves) - 1 and x is not None else x
             for i, x in enumerate(leaves)]  # fmt: skip
    outputs = op(*given, documents_BT=documents_BT)
    generator = torch.Generator().manual_seed(1)
    total = sum((o * torch.randn(o.shape, generator=generator).to(o)).sum() for o in outputs)
    total.backward()
    yield from (o.detach() for o in outputs)
    yield from (x.grad for x in leaves if x is not None)


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """`assert_same(naive, fast, inputs, documents)`: the last input is the initial state (or None)."""

    def check(naive: Op, fast: Op, inputs: list[Tensor | None], documents_BT: Tensor | None, tolerance: float) -> None:
        references = list(_run(naive, inputs, documents_BT))
        computed_with = [*references, *(x for x in inputs if x is not None)]
        for i, (expected, actual) in enumerate(zip(references, _run(fast, inputs, documents_BT), strict=True)):
            times = exceeds(actual, expected, tolerance, computed_with)
            assert times <= 1, f"tensor {i}: the difference is {times:.2g} times what is allowed"

    return check


@pytest.fixture
def random_documents() -> Callable[[int, int], Tensor]:
    """Ids [B, T] with a new document at about every ninth token, other places in every row."""
    return lambda batch, length: (torch.rand(batch, length) < 0.11).cumsum(dim=1)

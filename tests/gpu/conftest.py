"""Fused forms against the naive ones in float64, on memory that is NaN wherever nothing has been written."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flashslm.ops.gradient_check import relative_error

LENGTHS = (1, 63, 64, 65, 257)
# Relative error ||actual - expected|| / ||expected||. bf16 has 8 bits (0.4 %); fp32 products run as tf32 (11 bits).
TOLERANCE = {torch.bfloat16: 1.5e-2, torch.float32: 2e-3}

Op = Callable[..., Any]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that compile the same kernels go to one worker (pytest -n 8 --dist loadgroup): lengths do not matter."""
    here = [item for item in items if item.path.is_relative_to(Path(__file__).parent)]
    for item in here:
        if not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU here: run `make test-gpu` on a machine with one"))
        parameters = getattr(item, "callspec", None)
        values = [f"{v}" for name, v in parameters.params.items() if name != "length"] if parameters else []
        item.add_marker(pytest.mark.xdist_group("-".join([item.originalname, *values])))  # type: ignore[attr-defined]


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """`torch.empty` returns NaN, so that an element no kernel wrote cannot pass."""
    torch.manual_seed(0)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)


def _run(op: Op, inputs: list[Tensor | None], shared_state: bool, **options: Any) -> Iterator[Tensor]:
    leaves = [x if x is None else x.detach().clone().requires_grad_() for x in inputs]
    given = list(leaves)
    if shared_state and given[-1] is not None:  # a batch-1 state stands for a prefix that all sequences share
        given[-1] = given[-1].expand(leaves[0].shape[0], *leaves[-1].shape[1:])
    outputs = op(*given, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(1)
    total = sum((o.double() * torch.randn(o.shape, generator=generator, dtype=torch.float64).to(o.device)).sum()
                for o in outputs)  # fmt: skip
    total.backward()
    yield from (o.detach() for o in outputs)
    yield from (x.grad for x in leaves if x is not None)


@pytest.fixture
def assert_close() -> Callable[..., None]:
    """`assert_close(naive, fused, inputs, dtypes, tolerance)`: outputs and the gradient of every input.

    The naive form gets the same rounded values in float64; a state is the last input.
    """

    def check(
        naive: Op, fused: Op, inputs: list[Tensor | None], tolerance: float, state: bool = True, **options: Any
    ) -> None:
        exact = [x if x is None else x.double() for x in inputs]
        pairs = zip(_run(naive, exact, state, **options), _run(fused, inputs, state, **options), strict=True)
        errors = [relative_error(actual, expected) for expected, actual in pairs]
        assert all(error < tolerance for error in errors), [f"{error:.1e}" for error in errors]

    return check


@pytest.fixture
def random_documents() -> Callable[[int, int], Tensor]:
    """Ids [B, T] with a new document at about every thirtieth token."""
    return lambda batch, length: (torch.rand(batch, length, device="cuda") < 0.033).cumsum(dim=1)

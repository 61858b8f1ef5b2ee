"""The closeness of the tests: rounding passes, an error of the tolerance's size does not."""

import math

import pytest
import torch

from tests.closeness import exceeds

INPUTS = [torch.tensor([3.0, -4.0], dtype=torch.float64)]


@pytest.mark.parametrize("difference", [0.0, 5e-16])
def test_rounding_of_a_theoretical_zero_is_close(difference: float) -> None:
    zero = torch.zeros(2, dtype=torch.float64)
    assert exceeds(zero + difference, zero, 1e-10, INPUTS) < 1


@pytest.mark.parametrize(("expected", "actual"), [(0.0, 1e-12), (1.0, 1 + 2e-10), (1e-4, 1e-4 + 1e-13)])
def test_a_difference_above_tolerance_and_rounding_is_not(expected: float, actual: float) -> None:
    pair = (torch.tensor([value], dtype=torch.float64) for value in (actual, expected))
    assert exceeds(*pair, 1e-10, INPUTS) > 1


def test_what_cannot_be_compared_is_not_close() -> None:
    nan, one = torch.tensor([math.nan]), torch.ones(1)
    assert not exceeds(nan, one, 1e-3, [one]) <= 1
    assert not exceeds(one, torch.zeros(1), 1e-3, []) <= 1 and exceeds(torch.zeros(1), torch.zeros(1), 1e-3, []) == 0

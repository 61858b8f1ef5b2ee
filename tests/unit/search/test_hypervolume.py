"""The exact hypervolume against a naive twin, and the order in which points add to it."""

import math
import random
from collections.abc import Sequence
from itertools import pairwise, product

import pytest

from flashslm.search.hypervolume import Coordinates, by_hypervolume, front, hypervolume


def naive_hypervolume(points: list[Coordinates], reference: Coordinates) -> float:
    """Cut space at every coordinate; a cell counts if some point is below its lowest corner."""
    cuts = [sorted({r, *(p[axis] for p in points if p[axis] < r)}) for axis, r in enumerate(reference)]
    cells = product(*(pairwise(axis) for axis in cuts))
    return sum(
        math.prod(high - low for low, high in cell)
        for cell in cells
        if any(all(x <= low for x, (low, _) in zip(p, cell, strict=True)) for p in points)
    )


def random_points(count: int, dimensions: int, seed: int, steps: int = 1000) -> list[Coordinates]:
    """Few steps make ties in single coordinates and whole points twice."""
    rng = random.Random(seed)
    return [tuple(rng.randrange(steps) / steps for _ in range(dimensions)) for _ in range(count)]


@pytest.mark.parametrize("dimensions", [1, 2, 3])
@pytest.mark.parametrize(("count", "steps"), [(1, 1000), (7, 1000), (13, 4), (17, 1000)])
def test_the_volume_is_the_naive_ones(dimensions: int, count: int, steps: int) -> None:
    for seed in range(5):
        points = random_points(count, dimensions, seed, steps)
        for reference in (0.6, 1.0):  # some points lie beyond the first one
            corner = (reference,) * dimensions
            assert hypervolume(points, corner) == pytest.approx(naive_hypervolume(points, corner))


def test_known_volumes() -> None:
    assert hypervolume([], (1.0, 1.0, 1.0)) == 0.0
    assert hypervolume([(0.5, 0.5, 0.5)], (1.0, 1.0, 1.0)) == pytest.approx(0.125)
    assert hypervolume([(0.0, 0.5, 0.0), (0.5, 0.0, 0.0)], (1.0, 1.0, 1.0)) == pytest.approx(0.75)
    assert hypervolume([(1.0, 0.0, 0.0)], (1.0, 1.0, 1.0)) == 0.0


def test_the_front_is_what_none_dominates() -> None:
    points: list[Coordinates] = [(1.0, 2.0), (2.0, 1.0), (2.0, 2.0), (1.0, 2.0)]
    assert front(points) == [0, 1, 3], "equal points do not dominate each other"


def naive_order(points: list[Coordinates], reference: Coordinates) -> list[int]:
    chosen: list[int] = []
    while len(chosen) < len(points):
        rest = [i for i in range(len(points)) if i not in chosen]
        chosen.append(max(rest, key=lambda i: naive_hypervolume([points[j] for j in [*chosen, i]], reference)))
    return chosen


def scaled_front(count: int, seed: int) -> list[Coordinates]:
    """Points that do not dominate each other, from 0 to 1 in each of three coordinates."""
    points: list[Coordinates] = [(0.0, 1.0, 1.0), (1.0, 0.0, 1.0), (1.0, 1.0, 0.0)]
    for x, y, z in random_points(count, 3, seed):
        length = math.hypot(x, y, z)
        points.append((1 - 0.9 * x / length, 1 - 0.9 * y / length, 1 - 0.9 * z / length))
    return points


@pytest.mark.parametrize("seed", range(3))
def test_each_one_adds_the_most_to_those_before_it(seed: int) -> None:
    points = scaled_front(6, seed)
    assert by_hypervolume(points) == naive_order(points, (1.1, 1.1, 1.1))


def test_few_volumes_are_computed_for_the_order_of_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as there are pairs would take minutes for the front of a few hundred trials."""
    points, computed = scaled_front(37, seed=4), list[int]()
    order = by_hypervolume(points)
    exact = hypervolume

    def counted(given: Sequence[Coordinates], reference: Coordinates) -> float:
        if len(reference) == 3:
            computed.append(len(given))
        return exact(given, reference)

    monkeypatch.setattr("flashslm.search.hypervolume.hypervolume", counted)
    assert by_hypervolume(points) == order and sorted(order) == list(range(40))
    assert len(computed) < len(points) ** 2 / 4, "of 820 pairs"


def test_units_do_not_matter_and_what_is_dominated_comes_last() -> None:
    points = scaled_front(6, seed=1)
    worse: Coordinates = (1.5, 1.5, 1.5)
    in_units: list[Coordinates] = [(30.0 + 4 * x, 1e-3 * y, 1e6 * z) for x, y, z in [worse, *points]]
    assert by_hypervolume(in_units) == [i + 1 for i in by_hypervolume(points)] + [0]


def test_the_first_is_a_compromise_and_one_of_a_kind_is_fine() -> None:
    assert by_hypervolume([(0.0, 1.0, 1.0), (0.2, 0.2, 0.2), (1.0, 0.0, 0.9)])[0] == 1
    assert by_hypervolume([]) == [] and by_hypervolume([(3.0, 3.0)]) == [0]
    assert by_hypervolume([(2.0, 1.0), (2.0, 1.0), (3.0, 3.0)]) == [0, 1, 2]

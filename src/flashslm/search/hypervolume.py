"""The volume that points dominate (Zitzler and Thiele 1999), and the order in which points add most to it.

Every coordinate is minimised. Exact, by slicing objectives (While et al. 2006): a search has a few hundred points.
"""

import math
from collections.abc import Mapping, Sequence

Coordinates = tuple[float, ...]

MARGIN = 0.1  # of the front's range, by which the reference point lies beyond its worst values
ROUNDING = 1e-9  # of sums of volumes, all of about 1


def hypervolume(points: Sequence[Coordinates], reference: Coordinates) -> float:
    """Volume of what lies between the reference point and at least one of the points."""
    inside = sorted({p for p in points if all(x < r for x, r in zip(p, reference, strict=True))}, key=lambda p: p[-1])
    if not inside or len(reference) == 1:
        return reference[0] - inside[0][0] if inside else 0.0
    if len(reference) == 2:
        return _area(inside, reference)
    ends = [p[-1] for p in inside[1:]] + [reference[-1]]
    return sum(
        (end - p[-1]) * hypervolume([q[:-1] for q in inside[: number + 1]], reference[:-1])
        for number, (p, end) in enumerate(zip(inside, ends, strict=True))
        if end > p[-1]
    )


def _area(inside: Sequence[Coordinates], reference: Coordinates) -> float:
    """Of points by their second coordinate: each adds the strip by which it goes beyond those before it."""
    area, reached = 0.0, reference[0]
    for x, y in inside:
        area += max(0.0, reached - x) * (reference[1] - y)
        reached = min(reached, x)
    return area


def front(points: Sequence[Coordinates]) -> list[int]:
    """Indices of the points that no other one dominates."""
    return [i for i, p in enumerate(points) if not any(_dominates(q, p) for q in points)]


def by_hypervolume(points: Sequence[Coordinates]) -> list[int]:
    """All indices: first the front's, each the one that adds most to the volume of those before it, then the others'.

    Units do not matter: the front's best values become 0 and its worst ones 1, and the reference point is 1 + MARGIN.
    The first one is the best compromise, the first k are a greedy choice of k. Ties and the others keep their order.
    """
    waiting, chosen = front(points), list[int]()
    scaled = dict(zip(waiting, _scaled([points[i] for i in waiting]), strict=True))
    reference = (1.0 + MARGIN,) * len(points[0]) if points else ()
    gains = dict.fromkeys(waiting, math.inf)
    while waiting:
        best = _adding_most([scaled[i] for i in chosen], {i: scaled[i] for i in waiting}, gains, reference)
        waiting.remove(best)
        chosen.append(best)
    return chosen + [i for i in range(len(points)) if i not in scaled]


def _adding_most(
    taken: Sequence[Coordinates], waiting: Mapping[int, Coordinates], gains: dict[int, float], reference: Coordinates
) -> int:
    """The first index of those whose points make the largest volume with the points that are taken.

    `gains` is what each added to fewer points. A point never adds more to more of them, so those whose gain cannot
    reach the best any more are not computed again (lazy greedy choice, Minoux 1978); the others' gains are updated.
    """
    before, volumes = hypervolume(taken, reference), dict[int, float]()
    for i in sorted(waiting, key=lambda i: -gains[i]):
        if volumes and before + gains[i] < max(volumes.values()) - ROUNDING:
            break
        volumes[i] = hypervolume([*taken, waiting[i]], reference)
        gains[i] = volumes[i] - before
    return min(volumes, key=lambda i: (-volumes[i], i))


def _dominates(p: Coordinates, q: Coordinates) -> bool:
    return p != q and all(x <= y for x, y in zip(p, q, strict=True))


def _scaled(points: Sequence[Coordinates]) -> list[Coordinates]:
    """To 0 (the best) .. 1 (the worst) in each coordinate; 0 where all are the same."""
    ends = [(min(values), max(values)) for values in zip(*points, strict=True)]
    return [
        tuple((x - low) / (high - low) if high > low else 0.0 for x, (low, high) in zip(p, ends, strict=True))
        for p in points
    ]

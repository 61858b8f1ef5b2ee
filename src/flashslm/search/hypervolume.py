"""The volume that points dominate (Zitzler and Thiele 1999), and the order in which points add most to it.

Every coordinate is minimised. Exact, by slicing objectives (While et al. 2006): a search has a few hundred points.
"""

from collections.abc import Sequence

Coordinates = tuple[float, ...]

MARGIN = 0.1  # of the front's range, by which the reference point lies beyond its worst values


def hypervolume(points: Sequence[Coordinates], reference: Coordinates) -> float:
    """Volume of what lies between the reference point and at least one of the points."""
    inside = sorted({p for p in points if all(x < r for x, r in zip(p, reference, strict=True))}, key=lambda p: p[-1])
    if not inside or len(reference) == 1:
        return reference[0] - inside[0][0] if inside else 0.0
    ends = [p[-1] for p in inside[1:]] + [reference[-1]]
    return sum(
        (end - p[-1]) * hypervolume([q[:-1] for q in inside[: number + 1]], reference[:-1])
        for number, (p, end) in enumerate(zip(inside, ends, strict=True))
        if end > p[-1]
    )


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
    while waiting:
        taken = [scaled[i] for i in chosen]
        volumes = {i: hypervolume([*taken, scaled[i]], reference) for i in waiting}
        best = max(waiting, key=lambda i: volumes[i])
        waiting.remove(best)
        chosen.append(best)
    return chosen + [i for i in range(len(points)) if i not in scaled]


def _dominates(p: Coordinates, q: Coordinates) -> bool:
    return p != q and all(x <= y for x, y in zip(p, q, strict=True))


def _scaled(points: Sequence[Coordinates]) -> list[Coordinates]:
    """To 0 (the best) .. 1 (the worst) in each coordinate; 0 where all are the same."""
    ends = [(min(values), max(values)) for values in zip(*points, strict=True)]
    return [
        tuple((x - low) / (high - low) if high > low else 0.0 for x, (low, high) in zip(p, ends, strict=True))
        for p in points
    ]

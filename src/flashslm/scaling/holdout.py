"""How well the law predicts models that it was not fitted to: a larger one, and each size of the grid left out."""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, ConfigDict

from flashslm.scaling.law import Map, ScalingPoint, fit_law
from flashslm.scaling.points import num_constants

_SIZES = ("depth", "width")
_BOOTSTRAP = 1  # intervals are not asked for: only predictions are compared


class LeftOutSize(BaseModel):
    """The law without the models of one depth or width, and its worst error on their perplexity.

    `is_extrapolation`: the size is the largest of its axis.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    axis: str
    size: int
    is_extrapolation: bool
    points: int
    perplexity_error: float


def leave_out_sizes(points: Sequence[ScalingPoint], seed: int = 0, mapped: Map = map) -> list[LeftOutSize]:
    """Fit without each depth and each width in turn, and predict what was left out.

    Not without the smallest: towards it the power laws rise without bound, and no choice is made there. A size is left
    out only where at least two others of its axis, and more points than constants, remain. `mapped` is that of
    `fit_law`.
    """
    return [
        LeftOutSize(
            axis=axis,
            size=size,
            is_extrapolation=size == sizes[-1],
            points=len(left_out),
            perplexity_error=fit_law(kept, _BOOTSTRAP, seed, mapped).perplexity_error(left_out),
        )
        for axis in _SIZES
        if len(sizes := sorted({getattr(point, axis) for point in points})) > 2
        for size, kept, left_out in _folds(points, axis, sizes)
    ]


def _folds(
    points: Sequence[ScalingPoint], axis: str, sizes: Sequence[int]
) -> Iterator[tuple[int, list[ScalingPoint], list[ScalingPoint]]]:
    for size in sizes[1:]:
        kept = [point for point in points if getattr(point, axis) != size]
        left_out = [point for point in points if getattr(point, axis) == size]
        if len(kept) > num_constants(*(len({getattr(p, a) for p in kept}) for a in ("depth", "width", "tokens"))):
            yield size, kept, left_out

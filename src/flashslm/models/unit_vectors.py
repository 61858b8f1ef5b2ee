"""Which vectors of a model's matrices have unit norm under weight normalisation (Nemotron-Flash, section 3.3)."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import EMBEDDING, OPERATOR_SPECS, usual_axes


class UnitVectors(NamedTuple):
    """The rows (axis 1) or columns (axis 0) of a matrix; with `heads` their pieces of these sizes."""

    axis: int
    heads: tuple[int, ...] = ()


def embedding_vectors(axes: Mapping[str, str]) -> Iterator[tuple[str, UnitVectors]]:
    """The embedding's, by parameter name; none where `axes` says so."""
    axis = axes.get(EMBEDDING, usual_axes()[EMBEDDING])
    if axis != "none":
        yield "embedding.weight", UnitVectors(1 if axis == "rows" else 0)


def operator_vectors(
    architecture: Architecture, operator: str, axes: Mapping[str, str]
) -> Iterator[tuple[str, UnitVectors]]:
    """Those of a layer by its parameters' names: the usual ones except where `axes` has a kind ("A.q_proj").

    'heads' cuts the vectors along the layer's heads: columns of one that reads the stream, rows of one that writes.
    """
    spec, chosen = OPERATOR_SPECS[operator], usual_axes() | dict(axes)
    for name in (*spec.reads, *spec.writes):
        match chosen[f"{operator}.{name}"]:
            case "rows":
                yield f"{name}.weight", UnitVectors(1)
            case "columns":
                yield f"{name}.weight", UnitVectors(0)
            case "heads":
                yield f"{name}.weight", UnitVectors(int(name in spec.writes), spec.heads[name](architecture))

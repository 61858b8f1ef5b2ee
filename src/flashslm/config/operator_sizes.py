"""Sizes inside operators that a search may choose: the values it chooses from, and one candidate's choice."""

from collections.abc import Mapping
from typing import Annotated, Any, NamedTuple, TypeVar

from pydantic import Field, ValidationError

from flashslm.config.section import Distinct, Section
from flashslm.models.operator_spec import SIZE_FIELDS

FfnRatio = Annotated[float, Field(gt=0, le=1024)]
MambaState = Annotated[int, Field(ge=4, le=1024)]
Sizes = TypeVar("Sizes", bound=Section)  # the model section
HeadDim = Annotated[int, Field(ge=4, le=256)]


class SizeChoice(NamedTuple):
    """One value of each size that is searched, for all layers of a candidate; None: the recipe's model section has it.

    The fields are those of OperatorSizes.
    """

    ffn_ratio: float | None = None
    mamba_state: int | None = None
    head_dim: int | None = None

    def applied_to(self, sizes: Sizes) -> Sizes:
        """The recipe's sizes with these in them."""
        return sizes.model_copy(update=self.given())

    def given(self) -> dict[str, Any]:
        """As JSON has it: only the sizes that are searched."""
        return {name: value for name, value in self._asdict().items() if value is not None}


OWN_SIZES = SizeChoice()  # no size is searched


def _described(name: str) -> str:
    return (
        f"In search: the values that candidates choose from, model.{name} among them. In profiling: further values "
        f"that the table measures; those of the search are added. Empty: model.{name} alone."
    )


class OperatorSizes(Section):
    """Values of each of SIZE_FIELDS, under its name in the model section; an empty list: that section fixes it."""

    ffn_ratio: Distinct[FfnRatio] = Field(default=(), description=_described("ffn_ratio"))
    mamba_state: Distinct[MambaState] = Field(default=(), description=_described("mamba_state"))
    head_dim: Distinct[HeadDim] = Field(
        default=(), description=_described("head_dim") + " A searched one divides every width of the search."
    )

    @property
    def is_empty(self) -> bool:
        return not any(getattr(self, name) for name in SIZE_FIELDS)

    def each(self) -> list[SizeChoice]:
        """Every value by itself, the other sizes being the recipe's own."""
        return [SizeChoice(**{name: value}) for name in SIZE_FIELDS for value in getattr(self, name)]


def sizes_in_words(sizes: Mapping[str, float]) -> str:
    """`ffn_ratio 2, mamba_state 64`; empty where no size is searched."""
    return ", ".join(f"{name} {value:g}" for name, value in sizes.items())


def sizes_to_measure(search: Any, profiling: Any) -> dict[str, tuple[float, ...]]:
    """profiling.sizes with those values of search.sizes that it lacks, from these two sections of a recipe.

    Empty if the search varies no size, or if a section has not the expected form: its own check names that.
    """
    try:
        searched, measured = _given_sizes(search), _given_sizes(profiling)
    except (AttributeError, ValidationError):
        return {}
    # In order of size, so that a search with the values in another order finds the table measured.
    joined = {name: tuple(sorted({*measured.get(name, ()), *values})) for name, values in searched.items()}
    return measured | joined if joined else {}


def _given_sizes(section: Any) -> dict[str, tuple[float, ...]]:
    return OperatorSizes.model_validate(section.get("sizes", {})).model_dump(exclude_defaults=True)

"""What every section of a recipe has in common."""

from collections import Counter
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
DNS_SUBDOMAIN_OR_NONE = r"^([a-z0-9]([a-z0-9.-]{0,251}[a-z0-9])?)?$"  # a Kubernetes object's name
MAX_LIST = 1000  # values in a list that each cost a measurement or a training
MAX_INTEGER = 2**53  # a double holds every integer below it
T = TypeVar("T")

Positive = Annotated[int, Field(ge=1)]
Factor = Annotated[float, Field(gt=0)]
Depth = Annotated[int, Field(ge=1, le=1024)]  # token mixers
Width = Annotated[int, Field(ge=1, le=65_536)]  # hidden size
Seed = Annotated[int, Field(ge=0, le=2**32 - 1)]  # what numpy, torch and Python all take


def _switch(value: Any) -> Any:
    """YAML 1.1 reads a bare on or off as a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


Switch = Annotated[Literal["on", "off"], BeforeValidator(_switch)]


def _each_once(values: tuple[T, ...]) -> tuple[T, ...]:
    if twice := [str(value) for value, count in Counter(values).items() if count > 1]:
        raise ValueError(f"{', '.join(twice)} is there more than once: each value stands for a run or row of its own")
    return values


Distinct = Annotated[tuple[T, ...], Field(max_length=MAX_LIST), AfterValidator(_each_once)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused, numbers finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _is_exact_in_a_double(cls, value: Any) -> Any:
        """KFP passes every number of a recipe as a double, which would round a larger integer."""
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, int) and abs(number) >= MAX_INTEGER:
                raise ValueError(f"{number} is too large: an integer of a recipe is below 2^53 ({MAX_INTEGER})")
        return value

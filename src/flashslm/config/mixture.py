"""Training data of several stored data sets, mixed by weight."""

from typing import Annotated

from pydantic import AfterValidator, Field

from flashslm.config.section import Section

TREE_ADDRESS_OR_NONE = r"^(s3://[^/]+/cas/[0-9a-f]{2}/[0-9a-f]{64})?$"


class MixtureSource(Section):
    """One data set of `training.mixture`."""

    name: str = Field(
        pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$", description="What metrics call it: tokens/NAME and epochs/NAME."
    )
    weight: float = Field(gt=0, description="Its share of the sequences is weight over the sum of all weights.")
    dataset: str = Field(
        default="",
        pattern=TREE_ADDRESS_OR_NONE,
        description="Address of a stored data set of the same tokenizer, s3://BUCKET/cas/AB/SHA256; empty: this run's.",
    )


def _distinguishable(sources: tuple[MixtureSource, ...]) -> tuple[MixtureSource, ...]:
    """Raise ValueError where two sources have one name or one data set."""
    for what, values in (("name", [s.name for s in sources]), ("dataset", [s.dataset for s in sources])):
        if twice := [value for value in dict.fromkeys(values) if values.count(value) > 1]:
            raise ValueError(f"mixture: {what} '{twice[0]}' is there more than once: give each source one of its own")
    return sources


Mixture = Annotated[tuple[MixtureSource, ...], AfterValidator(_distinguishable)]

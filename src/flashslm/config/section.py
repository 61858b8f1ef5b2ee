"""What every section of a recipe has in common."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"
Positive = Annotated[int, Field(ge=1)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)

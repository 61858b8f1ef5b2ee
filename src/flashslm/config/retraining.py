"""Sections that say how a champion is trained on, and the promotion hook."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from flashslm.config.paths import LocalPath
from flashslm.config.secret import STARS, Secret
from flashslm.config.section import Section

HOOK_URL_VARIABLE = "FLASHSLM_HOOK_URL"  # the webhook's address for a process that has only a written recipe


class RetrainingConfig(Section):
    """Continued pretraining of the champion on text it has not seen; what is not said here is as in `training`."""

    steps: int = Field(default=1000, ge=1, description="Optimizer steps on the new text.")
    learning_rate: float = Field(default=3e-4, gt=0, description="Peak learning rate.")
    min_learning_rate_ratio: float = Field(
        default=0.1, ge=0, le=1, description="The last step's learning rate over the peak."
    )
    warmup_steps: int = Field(default=50, ge=0, description="Steps of linear warm-up; a cosine follows.")
    replay_fraction: float = Field(
        default=0.1,
        ge=0,
        lt=1,
        description="Share of each batch's sequences that comes from the champion's first data.",
    )
    min_new_bytes: int = Field(default=1_000_000, ge=1, description="Less new text than this waits for the next run.")
    max_evaluated_datasets: int = Field(
        default=4, ge=1, description="The champion's data sets on which both are compared: the first and the newest."
    )


class PromotionHook(Section):
    """Who is notified of a promotion: a command (JSON on its standard input) or a signed webhook; neither = nothing.

    The address may hold a token, so it is written nowhere: a step takes it from $FLASHSLM_HOOK_URL.
    """

    command: Annotated[tuple[str, ...], LocalPath(program=True)] = Field(
        default=(),
        description="A program (with a '/': from the recipe's directory) and its arguments; it gets JSON on stdin.",
    )
    url: Secret = Field(default=Secret(""), description="Address of a webhook, which gets signed JSON.")
    secret_variable: str = Field(
        default="FLASHSLM_HOOK_SECRET", description="The environment variable that holds the webhook's key."
    )
    timeout_s: float = Field(default=10.0, gt=0, description="Seconds per attempt.")
    attempts: int = Field(default=3, ge=1, description="Attempts in all.")

    @field_validator("url")
    @classmethod
    def _is_address(cls, url: Secret) -> Secret:
        if not re.fullmatch(r"(https?://\S+)?", url.get_secret_value()) and not url.is_hidden:
            raise ValueError("an address begins with http:// or https:// and has no blanks")
        return url

    def located(self, directory: Path) -> "PromotionHook":
        """The hook as this machine runs it: a program with a '/' in its name is meant from `directory`, the recipe's.

        Raises ValueError if the program is missing.
        """
        if not self.command:
            return self
        program, *arguments = self.command
        where = str((directory / program).absolute()) if "/" in program else program
        if not shutil.which(where):
            place = f"'{where}', from the recipe's directory," if "/" in program else f"'{program}' in PATH"
            raise ValueError(f"gate.promotion_hook.command: {place} is not a program that can be executed")
        return self.model_copy(update={"command": (where, *arguments)})

    def environment(self, environ: Mapping[str, str]) -> dict[str, str]:
        """The variables by which the hook's address reaches steps. Raises ValueError if it is known from nowhere."""
        if self.url.is_hidden and not environ.get(HOOK_URL_VARIABLE):
            raise ValueError(
                f"gate.promotion_hook.url is '{STARS}', as a written recipe has it: set ${HOOK_URL_VARIABLE} to the "
                "address, or write it into the recipe"
            )
        return {HOOK_URL_VARIABLE: self.address(environ)} if self.url else {}

    def address(self, environ: Mapping[str, str]) -> str:
        """Where the webhook is; "" where there is none or it is not known."""
        return environ.get(HOOK_URL_VARIABLE, "") if self.url.is_hidden else self.url.get_secret_value()

    @model_validator(mode="after")
    def _one_of_both(self) -> "PromotionHook":
        if self.command and self.url:
            raise ValueError("command and url are both given: choose one")
        return self

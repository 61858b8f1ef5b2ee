"""Sections that say how a champion is trained on, and who hears of a promotion."""

from pydantic import Field, model_validator

from flashslm.config.section import Section


class RetrainingConfig(Section):
    """Continued pretraining of the champion on text it has not seen; what is not said here is as in `training`."""

    steps: int = Field(default=1000, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=50, ge=0)
    replay_fraction: float = Field(default=0.1, ge=0, lt=1)  # of each batch's sequences: from the champion's first data
    min_new_bytes: int = Field(default=1_000_000, ge=1)  # less new text than this waits for the next run
    max_evaluated_datasets: int = Field(default=4, ge=1)  # of the champion's: the first and the newest; plus the new


class PromotionHook(Section):
    """What is told of a promotion: a command (JSON on its standard input) or a signed webhook; neither = nothing."""

    command: tuple[str, ...] = ()
    url: str = Field(default="", pattern=r"^(https?://\S+)?$")
    secret_variable: str = "FLASHSLM_HOOK_SECRET"  # the environment variable that holds the webhook's key
    timeout_s: float = Field(default=10.0, gt=0)
    attempts: int = Field(default=3, ge=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> "PromotionHook":
        if self.command and self.url:
            raise ValueError("command and url are both given: choose one")
        return self

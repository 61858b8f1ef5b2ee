"""An experiment's recipe: models, what is made equal between them, and the variants that are trained of each."""

from typing import Literal

from pydantic import Field, model_validator

from flashslm.config.recipe import RunConfig
from flashslm.config.section import DNS_LABEL, Distinct, Positive, Section

Match = Literal["none", "parameters", "latency_by_width", "latency_by_depth"]


class ExperimentModel(Section):
    """One of the models that are compared."""

    operators: str = Field(description="Its operators, such as (DFMF AFMF)x2; match latency_by_depth repeats them.")
    width: int = Field(
        default=0, ge=0, le=65_536, description="Its hidden size; 0: that of the experiment, or what the match chooses."
    )


class ExperimentConfig(Section):
    """What is compared. Seeds and weight normalisation on or off are the training section's."""

    question: str = Field(description="What the experiment answers, in a sentence.")
    models: dict[str, ExperimentModel] = Field(min_length=1, description="The models by name.")
    baseline: str = Field(default="", description="The model that each other one is compared with; empty: none.")
    match: Match = Field(
        default="none",
        description="What is made equal by the choice of width or depth: parameters (width), or the latency table's "
        "time per token (width among profiling.widths, or depth at one width); the target is the latency section's.",
    )
    width: int = Field(default=0, ge=0, le=65_536, description="Hidden size of the models that give none.")
    parameters: int = Field(default=0, ge=0, description="match 'parameters': of every model, embedding and all.")
    steps: Distinct[Positive] = Field(
        default=(), description="Training budgets, a run with a schedule of its own for each; empty: training.steps."
    )
    meta_tokens: Distinct[int] = Field(default=(), description="Numbers of meta tokens; empty: that of the model.")
    measure_latency: bool = Field(default=True, description="Time every model's decode step on this device.")

    @model_validator(mode="after")
    def _is_complete(self) -> "ExperimentConfig":
        if self.baseline and self.baseline not in self.models:
            raise ValueError(f"baseline is '{self.baseline}': allowed are {', '.join(self.models)}")
        if self.match == "parameters" and not self.parameters:
            raise ValueError("parameters is 0: match 'parameters' needs the number that every model shall have")
        chosen = self.match in ("parameters", "latency_by_width")
        if without := [name for name, model in self.models.items() if not (chosen or model.width or self.width)]:
            raise ValueError(f"models {', '.join(without)} have no width: give experiment.width")
        if any(number < 0 for number in self.meta_tokens):
            raise ValueError(f"meta_tokens is {list(self.meta_tokens)}: each at least 0")
        return self


class ExperimentRecipe(RunConfig):
    """A recipe of a run with the section `experiment`; it reads data, model, kernels, profiling, latency, training and
    evaluation besides.
    """

    name: str = Field(pattern=DNS_LABEL, description="The experiment's name, also in MLflow.")
    experiment: ExperimentConfig

    @model_validator(mode="after")
    def _budgets_have_one_schedule(self) -> "ExperimentRecipe":
        if self.experiment.steps and (self.training.stages or self.training.schedule != "cosine"):
            raise ValueError(
                "experiment.steps gives training budgets of its own: training.stages must be empty and "
                "training.schedule 'cosine'"
            )
        return self

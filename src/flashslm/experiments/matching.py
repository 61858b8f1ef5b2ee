"""From an experiment's models to architectures: what is made equal between them, and what they take per token."""

import math
from collections.abc import Iterator

from pydantic import BaseModel, ConfigDict

from flashslm.config.experiment import ExperimentRecipe
from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture, parse_operators, repeat_block
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.compilation import compile_ahead
from flashslm.profiling.depth_width import nearest_width
from flashslm.profiling.latency_table import LatencyTable
from flashslm.profiling.measure import ModelPoint, measure_latency_table, measure_models
from flashslm.profiling.plan import ProfilingPlan

MAX_DEPTH = 64  # token mixers


class MatchedModel(BaseModel):
    """A model of the experiment. Milliseconds per decoded token at the latency section's context and batch.

    `predicted_ms` is the latency table's, where the match took one, `measured_ms` the whole model's median, with its
    10th and 90th percentile.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    architecture: Architecture
    parameters: int
    predicted_ms: float | None = None
    measured_ms: float | None = None
    measured_p10_ms: float | None = None
    measured_p90_ms: float | None = None

    @property
    def predicted_over_measured(self) -> float:
        return self.predicted_ms / self.measured_ms if self.predicted_ms and self.measured_ms else 1.0


def match_models(recipe: ExperimentRecipe, vocab_size: int) -> list[MatchedModel]:
    """Every model of the recipe at the width or depth that its match chooses, timed if the recipe asks for it.

    What the table chose is corrected once by what was measured, so that it is the measured times that are near the
    budget: `target_ms`, or the measured time of the reference. Raises InfeasibleArchitecture for a model that no size
    makes equal to the others.
    """
    experiment, plan = recipe.experiment, ProfilingPlan(recipe.profiling, recipe.model, vocab_size)
    if experiment.match.startswith("latency"):
        matcher = _LatencyMatcher(recipe, plan)
        found = [matcher.nearest(name, matcher.budget_ms) for name in experiment.models]
        return matcher.corrected(found) if experiment.measure_latency else found
    found = []
    for name, model in experiment.models.items():
        if experiment.match == "parameters":
            architecture = nearest_width(plan, model.operators, experiment.parameters)
        else:
            architecture = plan.architecture(model.operators, model.width or experiment.width)
        found.append(_matched(name, architecture))
    return _measured(found, recipe) if experiment.measure_latency else found


class _LatencyMatcher:
    """Looks for the size at which the latency table's time is nearest to the budget."""

    def __init__(self, recipe: ExperimentRecipe, plan: ProfilingPlan) -> None:
        self.recipe, self.experiment = recipe, recipe.experiment
        if self.experiment.match == "latency_by_depth":
            widths = {model.width or self.experiment.width for model in self.experiment.models.values()}
            reference = set() if recipe.latency.target_ms else {recipe.latency.reference_width}
            plan = plan.changed(widths=tuple(sorted(widths | reference)))
        self.plan = plan.changed(contexts=(recipe.latency.context,), batches=(recipe.latency.batch,))
        compile_ahead(self.plan)
        self.table: LatencyTable = measure_latency_table(self.plan)
        self.budget_ms = latency_budget_ms(self.table, recipe.latency, recipe.model, plan.vocab_size)

    def nearest(self, name: str, budget_ms: float) -> MatchedModel:
        """The model at the size whose predicted time is nearest to `budget_ms`, as a ratio."""
        times = {architecture: self._predict_ms(architecture) for architecture in self._candidates(name)}
        architecture = min(times, key=lambda a: abs(math.log(times[a] / budget_ms)))
        return _matched(name, architecture, times[architecture])

    def corrected(self, models: list[MatchedModel]) -> list[MatchedModel]:
        """Aim again by each model's own error of prediction; the size whose measured time is nearer is kept."""
        models = self._measured_with_reference(models)
        aimed = [self.nearest(model.name, self.budget_ms * model.predicted_over_measured) for model in models]
        changed = [new for new, old in zip(aimed, models, strict=True) if new.architecture != old.architecture]
        again = {model.name: model for model in (_measured(changed, self.recipe) if changed else [])}
        return [min((model, again.get(model.name, model)), key=self._miss) for model in models]

    def _measured_with_reference(self, models: list[MatchedModel]) -> list[MatchedModel]:
        """The models' times; where the budget is a reference's, its measured time takes the place of the table's."""
        latency = self.recipe.latency
        if latency.target_ms:
            return _measured(models, self.recipe)
        reference = self.plan.architecture(latency.reference_operators, latency.reference_width)
        *timed, last = _measured([*models, _matched("reference", reference)], self.recipe)
        assert last.measured_ms
        self.budget_ms = last.measured_ms * latency.reference_factor
        return timed

    def _miss(self, model: MatchedModel) -> float:
        assert model.measured_ms
        return abs(math.log(model.measured_ms / self.budget_ms))

    def _predict_ms(self, architecture: Architecture) -> float:
        return self.table.predict_ms(architecture, self.recipe.latency.context, self.recipe.latency.batch)

    def _candidates(self, name: str) -> Iterator[Architecture]:
        model = self.experiment.models[name]
        if self.experiment.match == "latency_by_width":
            yield from (self.plan.architecture(model.operators, width) for width in self.table.widths)
            return
        block, width = parse_operators(model.operators), model.width or self.experiment.width
        for depth in range(1, MAX_DEPTH + 1):
            yield self.plan.architecture(repeat_block(block, depth), width)


def _matched(name: str, architecture: Architecture, predicted_ms: float | None = None) -> MatchedModel:
    total = parameters(architecture)["total"]
    return MatchedModel(name=name, architecture=architecture, parameters=total, predicted_ms=predicted_ms)


def _measured(models: list[MatchedModel], recipe: ExperimentRecipe) -> list[MatchedModel]:
    """The models with their decode step's time; all of them in the same rounds, so that they meet the same machine."""
    latency = recipe.latency
    points = [ModelPoint(model.architecture, latency.context, latency.batch) for model in models]
    timings = measure_models(points, recipe.profiling)
    return [
        model.model_copy(update={"measured_ms": t.median_ms, "measured_p10_ms": t.p10_ms, "measured_p90_ms": t.p90_ms})
        for model, t in zip(models, timings, strict=True)
    ]

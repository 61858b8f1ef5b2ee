"""The training steps that compile and tune an experiment's kernels ahead."""

from collections.abc import Sequence

from flashslm.config.experiment import ExperimentModel, ExperimentRecipe
from flashslm.profiling.depth_width import nearest_width
from flashslm.profiling.plan import ProfilingPlan
from flashslm.steps.warm_kernels import WarmUp, each_layer_once, one_layer_each


def experiment_warm_ups(recipe: ExperimentRecipe) -> list[WarmUp]:
    """Each model at each width that its match may choose, with each number of meta tokens and batch shape, once."""
    numbers = recipe.experiment.meta_tokens or (recipe.model.num_meta_tokens,)
    return each_layer_once(
        one_layer_each(
            model.operators,
            width,
            recipe.model.model_copy(update={"num_meta_tokens": number}),
            shape.micro_batch_size,
            shape.sequence_length,
        )
        for model in recipe.experiment.models.values()
        for width in _widths(recipe, model)
        for number in numbers
        for shape in recipe.training.batch_shapes
    )


def _widths(recipe: ExperimentRecipe, model: ExperimentModel) -> Sequence[int]:
    """A trained tokenizer has the recipe's vocabulary; with another one a match by parameters may choose others."""
    experiment = recipe.experiment
    if experiment.match == "latency_by_width":
        return recipe.profiling.widths
    if experiment.match == "parameters":
        plan = ProfilingPlan(recipe.profiling, recipe.model, recipe.data.vocab_size)
        return (nearest_width(plan, model.operators, experiment.parameters).hidden_size,)
    return (model.width or experiment.width,)

"""What an experiment's recipe must satisfy beyond its field types: checked before anything starts. No torch here."""

from collections.abc import Iterator

from flashslm.config.experiment import ExperimentRecipe
from flashslm.models.architecture import InfeasibleArchitecture, build_architecture, parse_operators


def problems(recipe: ExperimentRecipe) -> list[str]:
    """Every inconsistency, each as: where, what was given, what is allowed."""
    return [*_models(recipe), *_lengths(recipe)]


def _models(recipe: ExperimentRecipe) -> Iterator[str]:
    experiment, measured = recipe.experiment, recipe.profiling.operators
    for name, model in experiment.models.items():
        where = f"experiment.models.{name}.operators"
        try:
            operators = parse_operators(model.operators)
            build_architecture(operators, model.width or experiment.width or 1024, recipe.model, recipe.data.vocab_size)
        except InfeasibleArchitecture as error:
            yield f"{where}: {error}"
            continue
        missing = sorted(set(operators) - set(measured))
        if experiment.match.startswith("latency") and missing:
            yield f"{where}: {', '.join(missing)} not in profiling.operators '{measured}': the table must measure them"


def _lengths(recipe: ExperimentRecipe) -> Iterator[str]:
    """Meta tokens take positions too."""
    evaluation, limit = recipe.evaluation, recipe.model.max_position_embeddings
    meta_tokens = max(recipe.experiment.meta_tokens or (recipe.model.num_meta_tokens,))
    recall = evaluation.recall_lengths if evaluation.recall_tasks else ()
    longest = {
        "training.sequence_length": max(shape.sequence_length for shape in recipe.training.batch_shapes),
        "evaluation.sequence_length": evaluation.sequence_length,
        "evaluation.needle_lengths": max(evaluation.needle_lengths, default=0),
        "evaluation.recall_lengths": max(recall, default=0),
        "latency.context": recipe.latency.context if recipe.experiment.measure_latency else 0,
    }
    for where, length in longest.items():
        if length + meta_tokens > limit:
            yield (f"{where}: {length} and {meta_tokens} meta tokens exceed model.max_position_embeddings {limit}")

"""What an experiment's recipe must satisfy beyond its field types: checked before anything starts. No torch here."""

from collections.abc import Iterator

from flashslm.config.experiment import ExperimentRecipe
from flashslm.models.architecture import InfeasibleArchitecture, build_architecture, parse_operators


def problems(recipe: ExperimentRecipe) -> list[str]:
    """Every inconsistency, each as: where, what was given, what is allowed."""
    return [*_models(recipe), *_reference(recipe), *_lengths(recipe), *_mixture(recipe)]


def _models(recipe: ExperimentRecipe) -> Iterator[str]:
    experiment = recipe.experiment
    for name, model in experiment.models.items():
        width = model.width or experiment.width or 1024
        yield from _operators(recipe, f"experiment.models.{name}.operators", model.operators, width)


def _reference(recipe: ExperimentRecipe) -> Iterator[str]:
    """Its time is the budget where no target is given."""
    latency, widths = recipe.latency, recipe.profiling.widths
    if latency.target_ms or not _reads_table(recipe):
        return
    yield from _operators(recipe, "latency.reference_operators", latency.reference_operators, latency.reference_width)
    if recipe.experiment.match == "latency_by_width" and latency.reference_width not in widths:
        missing = f"{latency.reference_width} not in profiling.widths {list(widths)}"
        yield f"latency.reference_width: {missing}: the table must measure it"


def _operators(recipe: ExperimentRecipe, where: str, text: str, width: int) -> Iterator[str]:
    measured = recipe.profiling.operators
    try:
        operators = parse_operators(text)
        build_architecture(operators, width, recipe.model, recipe.data.vocab_size)
    except InfeasibleArchitecture as error:
        yield f"{where}: {error}"
        return
    missing = sorted(set(operators) - set(measured))
    if _reads_table(recipe) and missing:
        yield f"{where}: {', '.join(missing)} not in profiling.operators '{measured}': the table must measure them"


def _reads_table(recipe: ExperimentRecipe) -> bool:
    return recipe.experiment.match.startswith("latency")


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
        "latency.context": recipe.latency.context if recipe.experiment.measure_latency or _reads_table(recipe) else 0,
    }
    for where, length in longest.items():
        if length + meta_tokens > limit:
            yield (f"{where}: {length} and {meta_tokens} meta tokens exceed model.max_position_embeddings {limit}")


def _mixture(recipe: ExperimentRecipe) -> Iterator[str]:
    """An experiment's data set lies on this disk, and there is none beside it."""
    for index, source in enumerate(recipe.training.mixture):
        if source.dataset:
            yield (
                f"training.mixture[{index}]: '{source.name}' is another data set ({source.dataset}); an experiment "
                "trains on one: prepare the mixture as one data set, and give it with --dataset"
            )

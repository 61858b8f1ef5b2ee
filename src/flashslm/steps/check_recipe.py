"""check_recipe: the whole recipe before any work, since on a cluster a person may have changed it in KFP's pages."""

from collections.abc import Iterator
from typing import Any

from flashslm.config import EvaluationConfig, digest
from flashslm.config.steps import EVERY_SECTION
from flashslm.evaluation import tasks
from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.context import StepContext
from flashslm.steps.recipe_checks import problems_before_a_run


def run(context: StepContext) -> dict[str, Any]:
    """Result: `variants`, the pretraining runs of the recipe, and `config_digest`, the identity of all its sections.

    Raises ValueError that names every field that is wrong.
    """
    config = context.config
    found = [*problems_before_a_run(config), *_missing_sources(context)]
    if "workers" in config.search.model_fields_set:
        found.append("search.workers: the pipeline's own parameter 'workers' says it: one text per worker")
    if found:
        raise ValueError("the recipe cannot be used: " + "; ".join(found))
    variants = config.variants()
    return {
        "variants": variants,
        "config_digest": digest(config.model_dump(mode="json", include=set(EVERY_SECTION))),
        "summary": f"recipe '{config.name}' is valid; pretraining runs: {len(variants)}"
        + _not_decontaminated(config.evaluation),
    }


def _not_decontaminated(evaluation: EvaluationConfig) -> str:
    """Said before hours of training: of the results it would be too late to learn it."""
    named = tasks.not_decontaminated(evaluation) if evaluation.lm_eval_tasks and tasks.is_installed() else []
    if not named:
        return ""
    return (
        f"; the text of {', '.join(named)} is not kept out of the training text by evaluation.task_data: name files of "
        "it in data.decontaminate_against"
    )


def _missing_sources(context: StepContext) -> Iterator[str]:
    """Data sets of the mixture that are not stored: pretraining, hours later, would be the first to ask for them."""
    for index, source in enumerate(context.config.training.mixture):
        if source.dataset and not context.store.list(context.store.index_key(Manifest.at(source.dataset, "dataset"))):
            yield (
                f"training.mixture[{index}].dataset: '{source.dataset}' ({source.name}) is not in the store: give the "
                "uri in artifacts/dataset.json of the run that prepared it"
            )

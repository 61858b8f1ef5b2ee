"""Component evaluate: the quality of the chosen checkpoint."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("evaluate"), install_kfp_package=False)
def evaluate(
    config: str,
    code_digest: str,
    dataset: Input[Dataset],
    chosen: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
):
    """Perplexity, bits per byte, needle retrieval and the recipe's lm-eval tasks."""
    import json

    from flashslm.steps.run import run_step

    result = run_step(
        "evaluate",
        config=config,
        inputs={"dataset": dataset.path, "chosen": chosen.path},
        outputs={"evaluation": evaluation.path},
        parameters={"code_digest": code_digest},
    )
    metrics.metadata.update({k: v for k, v in result.items() if isinstance(v, int | float)})
    with open(metrics.path, "w") as file:  # without a file here the step would never be a cache hit
        json.dump(metrics.metadata, file)

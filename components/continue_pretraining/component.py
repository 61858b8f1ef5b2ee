"""Component continue_pretraining: the champion trained on the new data."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("continue_pretraining"), install_kfp_package=False)
def continue_pretraining(
    config: str,
    code_digest: str,
    champion: Input[Artifact],
    deployed: Input[Model],
    dataset: Input[Dataset],
    checkpoint: Output[Model],
    metrics: Output[Metrics],
) -> str:
    """Train on from the champion's weights; a retry resumes from the last checkpoint. Returns the one word the pipeline
    branches on."""
    import json

    from flashslm.steps.run import run_step

    result = run_step(
        "continue_pretraining",
        config=config,
        inputs={"champion": champion.path, "deployed": deployed.path, "dataset": dataset.path},
        outputs={"checkpoint": checkpoint.path},
        parameters={"code_digest": code_digest},
    )
    metrics.metadata.update({k: v for k, v in result.items() if isinstance(v, int | float)})
    with open(metrics.path, "w") as file:  # without a file here the step would never be a cache hit
        json.dump(metrics.metadata, file)
    return result["decision"]

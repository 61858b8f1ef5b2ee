"""Component pretrain: one training run of the found architecture."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("pretrain"), install_kfp_package=False)
def pretrain(
    config: str,
    code_digest: str,
    weight_norm: str,
    seed: str,
    dataset: Input[Dataset],
    architecture: Input[Artifact],
    checkpoint: Output[Model],
    metrics: Output[Metrics],
):
    """Train from one seed with weight normalisation "on" or "off"; a retry resumes from the last checkpoint."""
    import json

    from flashslm.steps.run import run_step

    result = run_step(
        "pretrain",
        config=config,
        inputs={"dataset": dataset.path, "architecture": architecture.path},
        outputs={"checkpoint": checkpoint.path},
        parameters={"seed": seed, "weight_norm": weight_norm, "code_digest": code_digest},
    )
    metrics.metadata.update({k: v for k, v in result.items() if isinstance(v, int | float)})
    with open(metrics.path, "w") as file:  # without a file here the step would never be a cache hit
        json.dump(metrics.metadata, file)

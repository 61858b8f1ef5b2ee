"""Component compare_with_champion: champion and challenger on the same data."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("compare_with_champion"), install_kfp_package=False)
def compare_with_champion(
    config: str,
    code_digest: str,
    champion: Input[Artifact],
    deployed: Input[Model],
    exported: Input[Model],
    dataset: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
):
    """Evaluate both exported models on the champion's data sets and on the new one."""
    import json

    from flashslm.steps.run import run_step

    result = run_step(
        "compare_with_champion",
        config=config,
        inputs={
            "champion": champion.path,
            "deployed": deployed.path,
            "exported": exported.path,
            "dataset": dataset.path,
        },
        outputs={"evaluation": evaluation.path},
        parameters={"code_digest": code_digest},
    )
    metrics.metadata.update({k: v for k, v in result.items() if isinstance(v, int | float)})
    with open(metrics.path, "w") as file:  # without a file here the step would never be a cache hit
        json.dump(metrics.metadata, file)

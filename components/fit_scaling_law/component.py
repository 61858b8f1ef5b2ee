"""Component fit_scaling_law: the depth-width law and the choice under the latency budget."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("fit_scaling_law"), install_kfp_package=False)
def fit_scaling_law(
    config: str,
    code_digest: str,
    dataset: Input[Dataset],
    latency_table: Input[Artifact],
    scaling_law: Output[Artifact],
):
    """Train the small family, fit the law, choose depth and width."""
    from flashslm.steps.run import run_step

    run_step(
        "fit_scaling_law",
        config=config,
        inputs={"dataset": dataset.path, "latency_table": latency_table.path},
        outputs={"scaling_law": scaling_law.path},
        parameters={"code_digest": code_digest},
    )

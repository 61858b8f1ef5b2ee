"""Component select_architecture: the winner, the history and the Pareto front of the finished study."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("select_architecture"), install_kfp_package=False)
def select_architecture(
    config: str,
    code_digest: str,
    workers: list[str],
    dataset: Input[Dataset],
    latency_table: Input[Artifact],
    scaling_law: Input[Artifact],
    architecture: Output[Artifact],
):
    """Read the study once every worker is done: `workers` only says that they are."""
    from flashslm.steps.run import run_step

    run_step(
        "select_architecture",
        config=config,
        inputs={"dataset": dataset.path, "latency_table": latency_table.path, "scaling_law": scaling_law.path},
        outputs={"architecture": architecture.path},
        parameters={"code_digest": code_digest},
    )

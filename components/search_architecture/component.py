"""Component search_architecture: one worker of the architecture search."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input

from components.images import image_of


@dsl.component(base_image=image_of("search_architecture"), install_kfp_package=False)
def search_architecture(
    config: str,
    code_digest: str,
    worker: str,
    dataset: Input[Dataset],
    latency_table: Input[Artifact],
    scaling_law: Input[Artifact],
) -> str:
    """Work on the shared study until every trial is finished; return what this worker has to say, in plain words."""
    from flashslm.steps.run import run_step

    result = run_step(
        "search_architecture",
        config=config,
        inputs={"dataset": dataset.path, "latency_table": latency_table.path, "scaling_law": scaling_law.path},
        parameters={"worker": worker, "code_digest": code_digest},
    )
    return result["worker"]

"""Component profile_latency: the latency table of this device."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("profile_latency"), install_kfp_package=False)
def profile_latency(
    config: str, code_digest: str, device_digest: str, dataset: Input[Dataset], latency_table: Output[Artifact]
):
    """Measure every operator, check the sums against whole models; a changed `device_digest` is a cache miss."""
    from flashslm.steps.run import run_step

    run_step(
        "profile_latency",
        config=config,
        inputs={"dataset": dataset.path},
        outputs={"latency_table": latency_table.path},
        parameters={"code_digest": code_digest},
    )

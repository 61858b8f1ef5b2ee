"""Component profile_latency: the latency table of this device."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("profile_latency"), install_kfp_package=False)
def profile_latency(
    model: dict,
    kernels: dict,
    profiling: dict,
    latency: dict,
    code_digest: str,
    device_digest: str,
    dataset: Input[Dataset],
    latency_table: Output[Artifact],
):
    from flashslm.steps.component import run_component

    run_component("profile_latency", locals(), ("latency_table",))

"""Component search_architecture: one worker of the architecture search."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input

from components.images import image_of


@dsl.component(base_image=image_of("search_architecture"), install_kfp_package=False)
def search_architecture(
    seed: int,
    model: dict,
    kernels: dict,
    profiling: dict,
    latency: dict,
    scaling: dict,
    search: dict,
    code_digest: str,
    worker: str,
    dataset: Input[Dataset],
    latency_table: Input[Artifact],
    scaling_law: Input[Artifact],
) -> str:
    from flashslm.steps.component import run_component

    return run_component("search_architecture", locals())["worker"]

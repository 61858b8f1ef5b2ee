"""Component search_architecture: one worker of the architecture search."""

from kfp import dsl
from kfp.dsl import Artifact, Input

from components.images import image_of


@dsl.component(base_image=image_of("search_architecture"), install_kfp_package=False)
def search_architecture(
    search: dict,
    code_digest: str,
    worker: str,
    scaling_law: Input[Artifact],
) -> str:
    from flashslm.steps.component import run_component

    return run_component("search_architecture", locals())["worker"]

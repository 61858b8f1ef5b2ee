"""Component prepare_data: one worker's pieces of the text to tokens."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("prepare_data"), install_kfp_package=False)
def prepare_data(
    code_digest: str,
    worker: str,
    plan: Input[Artifact],
    pieces: Output[Artifact],
):
    from flashslm.steps.component import run_component

    run_component("prepare_data", locals(), ("pieces",))

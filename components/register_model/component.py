"""Component register_model: the promoted model becomes champion."""

from kfp import dsl
from kfp.dsl import Artifact, Input

from components.images import image_of


@dsl.component(base_image=image_of("register_model"), install_kfp_package=False)
def register_model(
    name: str,
    code_digest: str,
    config_digest: str,
    image: str,
    verdict: Input[Artifact],
):
    from flashslm.steps.component import run_component

    run_component("register_model", locals())

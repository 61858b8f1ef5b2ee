"""Component fetch_champion: the registry's champion."""

from kfp import dsl
from kfp.dsl import Artifact, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("fetch_champion"), install_kfp_package=False)
def fetch_champion(
    training: dict,
    evaluation_config: dict,
    latency: dict,
    gate: dict,
    code_digest: str,
    champion: Output[Artifact],
    deployed: Output[Model],
):
    from flashslm.steps.component import run_component

    run_component("fetch_champion", locals(), ("champion", "deployed"))

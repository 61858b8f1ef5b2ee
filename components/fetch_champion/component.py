"""Component fetch_champion: the registry's champion."""

from kfp import dsl
from kfp.dsl import Artifact, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("fetch_champion"), install_kfp_package=False)
def fetch_champion(config: str, code_digest: str, champion: Output[Artifact], deployed: Output[Model]):
    """Read the champion's version, what it was trained on and its exported model; fail if there is none."""
    from flashslm.steps.run import run_step

    run_step(
        "fetch_champion",
        config=config,
        outputs={"champion": champion.path, "deployed": deployed.path},
        parameters={"code_digest": code_digest},
    )

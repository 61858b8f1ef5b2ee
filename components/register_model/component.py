"""Component register_model: the promoted model becomes champion."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model

from components.images import image_of


@dsl.component(base_image=image_of("register_model"), install_kfp_package=False)
def register_model(
    config: str,
    code_digest: str,
    config_digest: str,
    image: str,
    dataset: Input[Dataset],
    evaluation: Input[Artifact],
    exported: Input[Model],
    verdict: Input[Artifact],
):
    """Register the exported model and move the champion alias, unless the champion has changed since the gate."""
    from flashslm.steps.run import run_step

    run_step(
        "register_model",
        config=config,
        inputs={
            "dataset": dataset.path,
            "evaluation": evaluation.path,
            "exported": exported.path,
            "verdict": verdict.path,
        },
        parameters={"code_digest": code_digest, "config_digest": config_digest, "image": image},
    )

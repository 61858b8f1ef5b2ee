"""Component gate_challenger: promote or hold a retrained model."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("gate_challenger"), install_kfp_package=False)
def gate_challenger(
    config: str,
    code_digest: str,
    champion: Input[Artifact],
    evaluation: Input[Artifact],
    exported: Input[Model],
    verdict: Output[Artifact],
) -> str:
    """Hold it to the recipe's limits and to the champion; return the one word the pipeline branches on."""
    from flashslm.steps.run import run_step

    result = run_step(
        "gate_challenger",
        config=config,
        inputs={"champion": champion.path, "evaluation": evaluation.path, "exported": exported.path},
        outputs={"verdict": verdict.path},
        parameters={"code_digest": code_digest},
    )
    return result["decision"]

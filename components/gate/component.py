"""Component gate: promote or hold."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("gate"), install_kfp_package=False)
def gate(
    config: str,
    code_digest: str,
    evaluation: Input[Artifact],
    exported: Input[Model],
    chosen: Input[Model],
    latency_table: Input[Artifact],
    verdict: Output[Artifact],
) -> str:
    """Compare with the recipe's limits and the champion; return the one word the pipeline branches on."""
    from flashslm.steps.run import run_step

    result = run_step(
        "gate",
        config=config,
        inputs={
            "evaluation": evaluation.path,
            "exported": exported.path,
            "chosen": chosen.path,
            "latency_table": latency_table.path,
        },
        outputs={"verdict": verdict.path},
        parameters={"code_digest": code_digest},
    )
    return result["decision"]

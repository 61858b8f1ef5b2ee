"""Component compare_weight_norm: the ablation and the chosen checkpoint."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("compare_weight_norm"), install_kfp_package=False)
def compare_weight_norm(
    config: str,
    code_digest: str,
    dataset: Input[Dataset],
    checkpoints: Input[list[Model]],
    ablation: Output[Artifact],
    chosen: Output[Model],
):
    """Compare every variant and seed; choose the checkpoint to evaluate and export."""
    from flashslm.steps.run import run_step

    run_step(
        "compare_weight_norm",
        config=config,
        inputs={"dataset": dataset.path, "checkpoints": [checkpoint.path for checkpoint in checkpoints]},
        outputs={"ablation": ablation.path, "chosen": chosen.path},
        parameters={"code_digest": code_digest},
    )

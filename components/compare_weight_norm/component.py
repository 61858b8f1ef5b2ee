"""Component compare_weight_norm: the ablation and the chosen checkpoint."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("compare_weight_norm"), install_kfp_package=False)
def compare_weight_norm(
    code_digest: str,
    checkpoints: Input[list[Model]],
    ablation: Output[Artifact],
    chosen: Output[Model],
):
    from flashslm.steps.component import run_component

    run_component("compare_weight_norm", locals(), ("ablation", "chosen"))

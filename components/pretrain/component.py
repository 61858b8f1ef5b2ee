"""Component pretrain: one training run of the found architecture."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("pretrain"), install_kfp_package=False)
def pretrain(
    training: dict,
    code_digest: str,
    weight_norm: str,
    seed: str,
    architecture: Input[Artifact],
    checkpoint: Output[Model],
    metrics: Output[Metrics],
):
    from flashslm.steps.component import run_component

    run_component("pretrain", locals(), ("checkpoint",))

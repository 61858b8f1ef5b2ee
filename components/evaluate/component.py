"""Component evaluate: the quality of the chosen checkpoint."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("evaluate"), install_kfp_package=False)
def evaluate(
    evaluation_config: dict,
    export: dict,
    code_digest: str,
    chosen: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
):
    from flashslm.steps.component import run_component

    run_component("evaluate", locals(), ("evaluation",))

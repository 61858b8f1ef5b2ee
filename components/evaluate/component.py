"""Component evaluate: the quality of the chosen checkpoint."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("evaluate"), install_kfp_package=False)
def evaluate(
    seed: int,
    kernels: dict,
    training: dict,
    evaluation_config: dict,
    code_digest: str,
    dataset: Input[Dataset],
    chosen: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
):
    from flashslm.steps.component import run_component

    run_component("evaluate", locals(), ("evaluation",))

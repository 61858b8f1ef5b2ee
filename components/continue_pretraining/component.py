"""Component continue_pretraining: the champion trained on the new data."""

from kfp import dsl
from kfp.dsl import Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("continue_pretraining"), install_kfp_package=False)
def continue_pretraining(
    kernels: dict,
    code_digest: str,
    deployed: Input[Model],
    dataset: Input[Dataset],
    checkpoint: Output[Model],
    metrics: Output[Metrics],
) -> str:
    from flashslm.steps.component import run_component

    return run_component("continue_pretraining", locals(), ("checkpoint",))["decision"]

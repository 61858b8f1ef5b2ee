"""Component compare_with_champion: champion and challenger on the same data."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("compare_with_champion"), install_kfp_package=False)
def compare_with_champion(
    seed: int,
    kernels: dict,
    training: dict,
    evaluation_config: dict,
    retraining: dict,
    code_digest: str,
    champion: Input[Artifact],
    deployed: Input[Model],
    exported: Input[Model],
    dataset: Input[Dataset],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
):
    from flashslm.steps.component import run_component

    run_component("compare_with_champion", locals(), ("evaluation",))

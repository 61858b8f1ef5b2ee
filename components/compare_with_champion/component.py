"""Component compare_with_champion: champion and challenger on the same data."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("compare_with_champion"), install_kfp_package=False)
def compare_with_champion(
    code_digest: str,
    exported: Input[Model],
    evaluation: Output[Artifact],
    metrics: Output[Metrics],
):
    from flashslm.steps.component import run_component

    run_component("compare_with_champion", locals(), ("evaluation",))

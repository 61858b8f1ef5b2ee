"""Component select_architecture: the winner, the history and the Pareto front of the finished study."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("select_architecture"), install_kfp_package=False)
def select_architecture(
    search: dict,
    code_digest: str,
    workers: list,
    scaling_law: Input[Artifact],
    architecture: Output[Artifact],
):
    from flashslm.steps.component import run_component

    run_component("select_architecture", locals(), ("architecture",))

"""Component fit_scaling_law: the depth-width law and the choice under the latency budget."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("fit_scaling_law"), install_kfp_package=False)
def fit_scaling_law(
    scaling: dict,
    code_digest: str,
    latency_table: Input[Artifact],
    scaling_law: Output[Artifact],
):
    from flashslm.steps.component import run_component

    run_component("fit_scaling_law", locals(), ("scaling_law",))

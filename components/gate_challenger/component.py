"""Component gate_challenger: promote or hold a retrained model."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("gate_challenger"), install_kfp_package=False)
def gate_challenger(
    code_digest: str,
    evaluation: Input[Artifact],
    verdict: Output[Artifact],
) -> str:
    from flashslm.steps.component import run_component

    return run_component("gate_challenger", locals(), ("verdict",))["decision"]

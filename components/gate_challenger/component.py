"""Component gate_challenger: promote or hold a retrained model."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("gate_challenger"), install_kfp_package=False)
def gate_challenger(
    gate: dict,
    code_digest: str,
    champion: Input[Artifact],
    evaluation: Input[Artifact],
    exported: Input[Model],
    verdict: Output[Artifact],
) -> str:
    from flashslm.steps.component import run_component

    return run_component("gate_challenger", locals(), ("verdict",))["decision"]

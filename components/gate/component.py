"""Component gate: promote or hold."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("gate"), install_kfp_package=False)
def gate(
    gate: dict,
    code_digest: str,
    evaluation: Input[Artifact],
    exported: Input[Model],
    verdict: Output[Artifact],
) -> str:
    from flashslm.steps.component import run_component

    return run_component("gate", locals(), ("verdict",))["decision"]

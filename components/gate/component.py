"""Component gate: promote or hold."""

from kfp import dsl
from kfp.dsl import Artifact, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("gate"), install_kfp_package=False)
def gate(
    gate_config: dict,
    code_digest: str,
    evaluation: Input[Artifact],
    exported: Input[Model],
    chosen: Input[Model],
    latency_table: Input[Artifact],
    verdict: Output[Artifact],
) -> str:
    """Compare with the limits and the champion; return the word the pipeline branches on."""
    arguments = locals()
    from flashslm.steps.component import run_component

    return run_component("gate", arguments, ("verdict",))["decision"]

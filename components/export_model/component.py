"""Component export_model: the deployable directories, their parity proof and their latency."""

from kfp import dsl
from kfp.dsl import Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("export_model"), install_kfp_package=False)
def export_model(
    profiling: dict,
    export: dict,
    code_digest: str,
    chosen: Input[Model],
    exported: Output[Model],
    metrics: Output[Metrics],
):
    from flashslm.steps.component import run_component

    run_component("export_model", locals(), ("exported",))

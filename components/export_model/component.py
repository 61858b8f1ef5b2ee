"""Component export_model: the deployable directories, their parity proof and their latency."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("export_model"), install_kfp_package=False)
def export_model(
    kernels: dict,
    profiling: dict,
    latency: dict,
    export: dict,
    code_digest: str,
    dataset: Input[Dataset],
    chosen: Input[Model],
    exported: Output[Model],
    metrics: Output[Metrics],
    latency_table: Input[Artifact] = None,
):
    from flashslm.steps.component import run_component

    run_component("export_model", locals(), ("exported",))

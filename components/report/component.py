"""Component report: the run's report, with its lineage."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("report"), install_kfp_package=False)
def report(
    name: str,
    gate: dict,
    code_digest: str,
    dataset: Input[Dataset],
    latency_table: Input[Artifact],
    scaling_law: Input[Artifact],
    architecture: Input[Artifact],
    ablation: Input[Artifact],
    chosen: Input[Model],
    evaluation: Input[Artifact],
    exported: Input[Model],
    verdict: Input[Artifact],
    report: Output[Artifact],
    page: Output[HTML],
):
    from flashslm.steps.component import run_component

    run_component("report", locals(), ("report", "page"))

"""Component report_retraining: what a retraining run changed."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Dataset, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("report_retraining"), install_kfp_package=False)
def report_retraining(
    name: str,
    code_digest: str,
    report: Output[Artifact],
    page: Output[HTML],
    dataset: Input[Dataset] = None,
    chosen: Input[Model] = None,
    verdict: Input[Artifact] = None,
):
    from flashslm.steps.component import run_component

    run_component("report_retraining", locals(), ("report", "page"))

"""Component report: the run's report, with its lineage."""

from kfp import dsl
from kfp.dsl import HTML, Artifact, Input, Output

from components.images import image_of


@dsl.component(base_image=image_of("report"), install_kfp_package=False)
def report(
    name: str,
    code_digest: str,
    ablation: Input[Artifact],
    verdict: Input[Artifact],
    report: Output[Artifact],
    page: Output[HTML],
):
    from flashslm.steps.component import run_component

    run_component("report", locals(), ("report", "page"))

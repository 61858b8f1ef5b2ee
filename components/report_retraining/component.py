"""Component report_retraining: what a retraining run changed."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("report_retraining"), install_kfp_package=False)
def report_retraining(  # noqa: PLR0913 - one input an artifact of the run
    config: str,
    code_digest: str,
    champion: Input[Artifact],
    dataset: Input[Dataset],
    report: Output[Artifact],
    chosen: Input[Model] = None,
    exported: Input[Model] = None,
    evaluation: Input[Artifact] = None,
    verdict: Input[Artifact] = None,
):
    """Write the report; a run that ended early has fewer artifacts to show."""
    from flashslm.steps.run import run_step

    inputs = {
        "champion": champion,
        "dataset": dataset,
        "chosen": chosen,
        "exported": exported,
        "evaluation": evaluation,
        "verdict": verdict,
    }
    run_step(
        "report_retraining",
        config=config,
        inputs={name: artifact.path for name, artifact in inputs.items() if artifact},
        outputs={"report": report.path},
        parameters={"code_digest": code_digest},
    )

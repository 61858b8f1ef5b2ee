"""Component report: the run's report, with its lineage."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("report"), install_kfp_package=False)
def report(  # noqa: PLR0913 - one input an artifact of the run
    config: str,
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
):
    """Write the report of every artifact of the run."""
    from flashslm.steps.run import run_step

    inputs = {
        "dataset": dataset,
        "latency_table": latency_table,
        "scaling_law": scaling_law,
        "architecture": architecture,
        "ablation": ablation,
        "chosen": chosen,
        "evaluation": evaluation,
        "exported": exported,
        "verdict": verdict,
    }
    run_step(
        "report",
        config=config,
        inputs={name: artifact.path for name, artifact in inputs.items()},
        outputs={"report": report.path},
        parameters={"code_digest": code_digest},
    )

"""Component end_run: the end of a run on a cluster, however it ends. The cluster pass adds it; it is not a step."""

from kfp import dsl
from kfp.dsl import Markdown, Output, PipelineTaskFinalStatus

from components.images import image_of


@dsl.component(base_image=image_of("end_run"), install_kfp_package=False)
def end_run(status: PipelineTaskFinalStatus, mlflow: Output[Markdown]):
    """Give the run in MLflow its true end; the artifact is its address there."""
    from flashslm.launch.kfp import run_end

    with open(mlflow.path, "w", encoding="utf-8") as file:
        file.write(run_end.end_run(status.state))

"""Component export_model: the deployable directories, their parity proof and their latency."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import RUNTIME_IMAGE


@dsl.component(base_image=RUNTIME_IMAGE, install_kfp_package=False)
def export_model(
    config: str,
    code_digest: str,
    dataset: Input[Dataset],
    chosen: Input[Model],
    latency_table: Input[Artifact],
    exported: Output[Model],
    metrics: Output[Metrics],
):
    """Write the Hugging Face directory and the TensorRT-LLM bundle, reload, compare, measure."""
    import json

    from flashslm.steps.run import run_step

    result = run_step(
        "export_model",
        config=config,
        inputs={"dataset": dataset.path, "chosen": chosen.path, "latency_table": latency_table.path},
        outputs={"exported": exported.path},
        parameters={"code_digest": code_digest},
    )
    metrics.metadata.update({k: v for k, v in result.items() if isinstance(v, int | float)})
    with open(metrics.path, "w") as file:  # without a file here the step would never be a cache hit
        json.dump(metrics.metadata, file)

"""Component export_model: the deployable directories, their parity proof and their latency."""

from kfp import dsl
from kfp.dsl import Artifact, Dataset, Input, Metrics, Model, Output

from components.images import image_of


@dsl.component(base_image=image_of("export_model"), install_kfp_package=False)
def export_model(
    config: str,
    code_digest: str,
    dataset: Input[Dataset],
    chosen: Input[Model],
    exported: Output[Model],
    metrics: Output[Metrics],
    latency_table: Input[Artifact] = None,
):
    """Write the Hugging Face directory and the TensorRT-LLM bundle, reload, compare, measure."""
    import json

    from flashslm.steps.run import run_step

    inputs = {"dataset": dataset, "chosen": chosen, "latency_table": latency_table}
    result = run_step(
        "export_model",
        config=config,
        inputs={name: artifact.path for name, artifact in inputs.items() if artifact},
        outputs={"exported": exported.path},
        parameters={"code_digest": code_digest},
    )
    metrics.metadata.update({k: v for k, v in result.items() if isinstance(v, int | float)})
    with open(metrics.path, "w") as file:  # without a file here the step would never be a cache hit
        json.dump(metrics.metadata, file)

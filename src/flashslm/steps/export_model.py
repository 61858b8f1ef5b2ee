"""export_model: the Hugging Face directory, the TensorRT-LLM bundle, the parity proof, the measured latency."""

from typing import Any

from flashslm.data.loader import TokenLoader
from flashslm.export.huggingface import export_huggingface
from flashslm.export.mlflow_model import write_mlflow_model
from flashslm.export.parity import check_parity
from flashslm.export.tensorrt_llm import export_tensorrt_llm
from flashslm.export.verify import verify_export
from flashslm.hardware import device_fingerprint, pick_device
from flashslm.models.accounting import parameters
from flashslm.models.serialization import load_model
from flashslm.profiling.beside_reference import measure_beside_reference
from flashslm.profiling.measure import ModelPoint
from flashslm.steps.context import StepContext, write_json
from flashslm.steps.latency_tables import read_latency_table

# Of the device and the moment, so no part of the tree: the same weights have the same address. The manifest has them.
MEASURED = (
    "predicted_latency_ms",
    "reference_latency_ms",
    "joules_per_token",
    "device",
    "context",
    "batch",
)  # and all of "latency_"


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `exported`: huggingface/, tensorrt_llm/, export.json, and what MLflow needs to load it. Fails if the
    reload's logits differ.

    Without a latency table the predicted latency is left out.
    """
    config = context.config
    model = load_model(context.fetch("chosen"))
    with context.scratch() as directory, context.scratch() as scratch:
        dataset = context.store.get_part(context.manifest("dataset"), ("validation/", "tokenizer/"), scratch)
        huggingface, bundle = directory / "huggingface", directory / "tensorrt_llm"
        written = export_huggingface(
            *(model, dataset / "tokenizer", huggingface, config.export, context.manifest("dataset").metadata),
            weights=config.profiling.weights,
        )
        export_tensorrt_llm(huggingface, bundle)
        for exported in (huggingface, bundle):
            if problems := verify_export(exported):
                raise RuntimeError(f"export of {exported.name} breaks its contract: " + "; ".join(map(str, problems)))
        loader = TokenLoader(dataset, "validation", config.export.parity_tokens, 1, seed=0)
        parity = check_parity(model, huggingface, loader.batch(0).tokens_BT, config.export.parity_tolerance)
        facts = measure(context, model) | {
            "parity_max_abs_difference": parity.max_abs_difference,
            "dtype": config.export.dtype,
            "served_weights": config.profiling.weights,
            "weight_norm": context.manifest("chosen").metadata.get("weight_norm", "off"),
            "output_row_norm_min": written.output_row_norm_min,
            "output_row_norm_max": written.output_row_norm_max,
        }
        write_json(
            directory / "export.json",
            {k: v for k, v in facts.items() if k not in MEASURED and not k.startswith("latency_")},
        )
        write_mlflow_model(directory)
        context.publish("exported", directory, facts)
    return {
        **{k: v for k, v in facts.items() if isinstance(v, int | float)},
        "summary": f"{facts['parameters']:,} parameters, {latency_text(facts)}; "
        f"reloaded logits within {parity.max_abs_difference:.1e}",
    }


def latency_text(facts: dict[str, Any]) -> str:
    """Median, its interval, what the machine did meanwhile, and the table's prediction if there is one."""
    predicted = facts.get("predicted_latency_ms")
    text = f"{facts['latency_ms']:.4g} ms/token (95 % {facts['latency_low_ms']:.4g} to {facts['latency_high_ms']:.4g}"
    text += f", the reference drifted by {facts['latency_drift']:.1%}"
    return text + (f", predicted {predicted:.4g})" if predicted is not None else ")")


def measure(context: StepContext, model: Any) -> dict[str, Any]:
    """Decode latency of the whole model, in rounds beside the reference model; the table's prediction if there is one;
    size, and the device.
    """
    config, architecture = context.config, model.architecture
    device = pick_device(config.profiling.device)
    point = ModelPoint(architecture, config.latency.context, config.latency.batch)
    timing = measure_beside_reference(point, config.profiling)
    predicted = {}
    if "latency_table" in context.inputs:
        table = read_latency_table(context)
        predicted_ms = table.predict_ms(architecture, config.latency.context, config.latency.batch)
        predicted = {"predicted_latency_ms": predicted_ms}
    return predicted | {
        **timing.facts(),
        "context": config.latency.context,
        "batch": config.latency.batch,
        "parameters": parameters(architecture)["total"],
        "operators": architecture.operators,
        "width": architecture.hidden_size,
        "device": device_fingerprint(device).id,
    }

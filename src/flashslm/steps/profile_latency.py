"""profile_latency: measure the latency table and the depth-width sweep on the present device."""

from typing import Any

from flashslm.profiling.additivity import check_additivity
from flashslm.profiling.calibration import calibrate
from flashslm.profiling.compilation import compile_ahead
from flashslm.profiling.depth_width import measure_depth_width
from flashslm.profiling.latency_table import LatencyTable
from flashslm.profiling.measure import measure_latency_table
from flashslm.profiling.plan import ProfilingPlan
from flashslm.steps.context import StepContext
from flashslm.steps.recipe_checks import kernel_problems_of_a_plan


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `latency_table`: latency_table.json, depth_width.json, check.json."""
    vocab_size = context.manifest("dataset").metadata["vocab_size"]
    plan = ProfilingPlan(context.config.profiling, context.config.model, vocab_size)
    if found := kernel_problems_of_a_plan(context.config, plan):
        device = context.config.profiling.device
        raise ValueError(
            f"profiling.device is '{device}', here {plan.device}: {'; '.join(found)}; or set profiling.device: cpu"
        )
    compile_ahead(plan, context.parameters.get("code_digest", ""))
    table = measure_latency_table(plan)
    context.events.emit("progress", f"{len(table.entries)} table entries measured, {len(table.left_out)} left out")
    table = calibrate(table, plan, context.config.latency)
    calibration = calibration_facts(table)
    check = check_additivity(table, plan)
    sweep = measure_depth_width(plan)
    context.publish_json(
        "latency_table",
        {
            "latency_table.json": table.model_dump(mode="json"),
            "check.json": check.model_dump(mode="json"),
            "depth_width.json": sweep.model_dump(mode="json"),
        },
        {"device": table.device.id, "entries": len(table.entries)},
    )
    return {
        "table_entries": len(table.entries),
        "left_out_entries": len(table.left_out),
        "residual_median_relative": check.median_relative,
        "residual_worst_relative": check.worst_relative,
        **calibration,
        "summary": f"{len(table.entries)} entries on {table.device.name}; {calibration_text(calibration)} against "
        f"whole models: median error {check.median_relative:.1%}, worst {check.worst_relative:.1%}",
    }


def calibration_facts(table: LatencyTable) -> dict[str, float]:
    """The worst errors over all batches; nothing of a table that was not calibrated."""
    if not table.overheads:
        return {}
    return {
        "calibration_models": len(table.calibration),
        "calibration_summed_worst_relative": max(o.summed_worst_relative or 0.0 for o in table.overheads),
        "calibration_left_out_worst_relative": max(o.left_out_worst_relative or 0.0 for o in table.overheads),
    }


def calibration_text(facts: dict[str, float]) -> str:
    """What is compared with the check's whole models, and what came before."""
    if not facts:
        return "sum"
    return (
        f"calibrated on {facts['calibration_models']} whole models, worst error of their sums "
        f"{facts['calibration_summed_worst_relative']:.1%}, left out of the fit "
        f"{facts['calibration_left_out_worst_relative']:.1%}; prediction"
    )

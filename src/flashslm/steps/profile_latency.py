"""profile_latency: measure the latency table and the depth-width sweep on the present device."""

from typing import Any

from flashslm.profiling.additivity import calibrate, check_additivity
from flashslm.profiling.compilation import compile_ahead
from flashslm.profiling.depth_width import measure_depth_width
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
    compile_ahead(plan)
    table = measure_latency_table(plan)
    context.events.emit("progress", f"{len(table.entries)} table entries measured, {len(table.left_out)} left out")
    table = calibrate(table, plan)
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
        "summary": f"{len(table.entries)} entries on {table.device.name}; sum against whole models: "
        f"median error {check.median_relative:.1%}, worst {check.worst_relative:.1%}",
    }

"""The latency table that a step is given, if it was measured as its recipe wants the model deployed."""

from flashslm.profiling.latency_table import LatencyTable
from flashslm.steps.context import StepContext


def read_latency_table(context: StepContext) -> LatencyTable:
    """Raises ValueError for one of weights in another format than the recipe's."""
    table = LatencyTable.model_validate(context.read_json("latency_table", "latency_table.json"))
    return table.require_weights(context.config.profiling.weights)

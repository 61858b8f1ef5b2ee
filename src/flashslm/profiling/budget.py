"""The latency budget: absolute, or relative to a reference architecture on the table's own device."""

from flashslm.config import LatencyConfig, ModelConfig
from flashslm.models.architecture import build_architecture
from flashslm.profiling.latency_table import LatencyTable


def latency_budget_ms(table: LatencyTable, latency: LatencyConfig, sizes: ModelConfig, vocab_size: int) -> float:
    """Milliseconds per decoded token: `target_ms`, or the table's prediction for the reference times its factor."""
    if latency.target_ms:
        return latency.target_ms
    reference = build_architecture(latency.reference_operators, latency.reference_width, sizes, vocab_size)
    return table.predict_ms(reference, latency.context, latency.batch) * latency.reference_factor

"""Whole models beside a latency table's sums, and the overhead of a step that is fitted on them."""

from pydantic import BaseModel, ConfigDict


class CheckedModel(BaseModel):
    """One whole model; milliseconds per decode step."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operators: str
    width: int
    context: int
    batch: int
    measured_ms: float
    predicted_ms: float  # by the table, its overhead included
    summed_ms: float  # without it; on a CPU by entries measured again, interleaved with the whole models
    step_mb: float = 0.0  # MB (1e6 bytes) that the step must move: weights, keys, states


class StepOverhead(BaseModel):
    """What a step of a whole model takes beyond its entries' sum, at one batch: `step_ms` once, `layer_ms` a layer, and
    `l2_ms_per_mb` for each MB by which the step's bytes fall short of the GPU's L2 cache, `l2_mb`.

    Entries are measured with weights that come from memory; those of a model about as small as the L2 partly stay there
    from step to step, so that the last one is negative. So are the others where a model's operators overlap more than
    copies of one do. Fitted on `models` whole models. The errors are absolute and relative: `summed_*` of the plain
    sums of these models, `left_out_*` of each one predicted by a fit on all others; None in earlier versions' tables.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    batch: int
    step_ms: float
    layer_ms: float
    l2_ms_per_mb: float = 0.0
    l2_mb: float = 0.0
    models: int
    summed_median_relative: float | None = None
    summed_worst_relative: float | None = None
    left_out_median_relative: float | None = None
    left_out_worst_relative: float | None = None

    def total_ms(self, layers: int, step_mb: float) -> float:
        """Of a model with this many operators whose step moves `step_mb`."""
        return self.step_ms + self.layer_ms * layers + self.l2_ms_per_mb * l2_shortfall_mb(self.l2_mb, step_mb)


def l2_shortfall_mb(l2_mb: float, step_mb: float) -> float:
    """How many MB the bytes of a step fall short of an L2 cache; 0 without a cache (on a CPU)."""
    return max(0.0, l2_mb - step_mb)

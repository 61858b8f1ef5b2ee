"""One metric of two models on the same items, as the gate and the comparison of any two models take it."""

from flashslm.evaluation.items import MetricItems
from flashslm.infra.registry.gate import Comparison


def compare_items(
    metric: str, data: str, challenger: MetricItems, champion: MetricItems, must_gain: bool = False
) -> Comparison:
    """With the interval of the paired difference where the items are the same, else without one."""
    paired = {}
    if challenger.items_sha256 == champion.items_sha256:
        low, high, found = challenger.interval_beside(champion)
        paired = {"low": low, "high": high, "p_value": found.p_value, "items": found.items, "method": found.method}
    return Comparison.model_validate(
        {
            "metric": metric,
            "data": data,
            "challenger": challenger.value,
            "champion": champion.value,
            "higher_is_better": challenger.higher_is_better,
            "must_gain": must_gain,
        }
        | paired
    )

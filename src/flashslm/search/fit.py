"""The hidden size of a design: the largest that meets the latency budget (Nemotron-Flash, app. C); never mutated."""

from collections.abc import Iterable

from flashslm.config import LatencyConfig, ModelConfig
from flashslm.models.architecture import Architecture, InfeasibleArchitecture, build_architecture
from flashslm.profiling.latency_table import LatencyTable


class WidthFitter:
    """Gives a design its width by the latency table."""

    def __init__(
        self,
        table: LatencyTable,
        latency: LatencyConfig,
        budget_ms: float,
        widths: Iterable[int],
        sizes: ModelConfig,
        vocab_size: int,
    ) -> None:
        self.table, self.latency, self.budget_ms = table, latency, budget_ms
        self.widths = sorted(widths, reverse=True)
        self.sizes, self.vocab_size = sizes, vocab_size

    def fit(self, operators: str) -> tuple[Architecture, float]:
        """The architecture and its predicted ms per token; InfeasibleArchitecture when no width is fast enough."""
        latency_ms = 0.0
        for width in self.widths:
            architecture = build_architecture(operators, width, self.sizes, self.vocab_size)
            latency_ms = self.table.predict_ms(architecture, self.latency.context, self.latency.batch)
            if latency_ms <= self.budget_ms:
                return architecture, latency_ms
        raise InfeasibleArchitecture(
            f"{operators} takes {latency_ms:.4g} ms per token at its smallest width {self.widths[-1]}, more than the "
            f"budget of {self.budget_ms:.4g} ms: raise the budget or add smaller search.widths"
        )

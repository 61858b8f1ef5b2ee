"""The hidden size of a design: the largest that meets the latency budget (Nemotron-Flash, app. C); never mutated."""

from dataclasses import dataclass
from itertools import product

from flashslm.config import OWN_SIZES, LatencyConfig, ModelConfig, OperatorSizes, SizeChoice, sizes_in_words
from flashslm.models.architecture import Architecture, InfeasibleArchitecture, build_architecture
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS
from flashslm.profiling.latency_table import LatencyTable


@dataclass(frozen=True)
class WidthFitter:
    """Gives a design its width by the latency table; the vocabulary is that of every candidate, and so are the sizes
    that are not searched.
    """

    table: LatencyTable
    latency: LatencyConfig
    budget_ms: float
    widths: tuple[int, ...]
    sizes: ModelConfig
    vocab_size: int

    def require_measured(self, values: OperatorSizes) -> None:
        """Raises ValueError where the table lacks a value that a candidate may have, before any is trained."""
        for sizes, width in product([OWN_SIZES, *values.each()], self.widths):
            all_operators = build_architecture(
                EXPORTABLE_OPERATORS, width, sizes.applied_to(self.sizes), self.vocab_size
            )
            self.table.predict_ms(all_operators, self.latency.context, self.latency.batch)

    def fit(self, operators: str, sizes: SizeChoice = OWN_SIZES) -> tuple[Architecture, float]:
        """The architecture and its predicted ms per token; InfeasibleArchitecture when no width is fast enough."""
        own, latency_ms = sizes.applied_to(self.sizes), 0.0
        for width in sorted(self.widths, reverse=True):
            architecture = build_architecture(operators, width, own, self.vocab_size)
            latency_ms = self.table.predict_ms(architecture, self.latency.context, self.latency.batch)
            if latency_ms <= self.budget_ms:
                return architecture, latency_ms
        searched = f" with {sizes_in_words(sizes.given())}" if sizes.given() else ""
        raise InfeasibleArchitecture(
            f"{operators}{searched} takes {latency_ms:.4g} ms per token at its smallest width {min(self.widths)}, more "
            f"than the budget of {self.budget_ms:.4g} ms: raise the budget or add smaller search.widths"
        )

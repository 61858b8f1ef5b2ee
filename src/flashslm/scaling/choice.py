"""Choose depth and width under a latency budget: lowest predicted loss that fits (Nemotron-Flash, section 3.1)."""

from collections.abc import Callable, Iterable

from pydantic import BaseModel, ConfigDict

from flashslm.scaling.law import DepthWidthLaw
from flashslm.statistics import which_end


class InfeasibleBudget(ValueError):
    """No candidate is fast enough; the message names the fastest one."""


class DepthWidth(BaseModel):
    """One (depth, width) with what it costs and what the law promises; the interval is the law's 90 % one.

    `extrapolated` names the axes on which it lies outside the models that the law was fitted to.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    depth: int
    width: int
    latency_ms: float
    predicted_loss_nats: float
    loss_interval_nats: tuple[float, float]
    extrapolated: tuple[str, ...]


class DepthWidthOption(DepthWidth):
    """A candidate, and whether it is within the budget."""

    feasible: bool


class Choice(DepthWidth):
    """The chosen depth and width, and every candidate they were chosen from."""

    budget_ms: float
    candidates: tuple[DepthWidthOption, ...]

    def ends(self) -> list[str]:
        """In words, where it has the largest or the smallest value that was offered: a better one may lie beyond."""
        found = []
        for axis in ("depth", "width"):
            value, offered = getattr(self, axis), {getattr(candidate, axis) for candidate in self.candidates}
            if end := which_end(value, offered):
                found.append(f"{axis} {value} is the {end} that was offered")
        return found

    def within_scatter(self, scatter_nats: float) -> list[DepthWidthOption]:
        """The other candidates in the budget, the fastest first, predicted less than `scatter_nats` above the choice.

        Points that scatter about the law by so much do not prefer the choice to them.
        """
        own, bound = (self.depth, self.width), self.predicted_loss_nats + scatter_nats
        others = (c for c in self.candidates if c.feasible and (c.depth, c.width) != own)
        return sorted((c for c in others if c.predicted_loss_nats < bound), key=lambda c: c.latency_ms)


def choose_depth_width(
    law: DepthWidthLaw,
    predict_latency: Callable[[int, int], float],
    depths: Iterable[int],
    widths: Iterable[int],
    tokens: int,
    budget_ms: float,
) -> Choice:
    """Lowest predicted loss after `tokens` training tokens among candidates within `budget_ms` a decoded token.

    `predict_latency(depth, width)` gives milliseconds. Equal losses go to the faster candidate. Raises InfeasibleBudget
    when nothing fits.
    """
    widths = tuple(widths)
    candidates = []
    for depth, width in ((d, w) for d in depths for w in widths):
        latency_ms = predict_latency(depth, width)
        candidates.append(
            DepthWidthOption(
                depth=depth,
                width=width,
                latency_ms=latency_ms,
                predicted_loss_nats=law.predict(depth, width, tokens),
                loss_interval_nats=law.interval(depth, width, tokens),
                extrapolated=law.extrapolated_axes(depth, width, tokens),
                feasible=latency_ms <= budget_ms,
            )
        )
    if not candidates:
        raise ValueError("no candidates: give at least one depth and one width")
    feasible = [c for c in candidates if c.feasible]
    if not feasible:
        fastest = min(candidates, key=lambda c: c.latency_ms)
        raise InfeasibleBudget(
            f"no candidate decodes a token within {budget_ms:.4g} ms: the fastest is depth {fastest.depth}, width "
            f"{fastest.width} at {fastest.latency_ms:.4g} ms; raise the budget or offer smaller depths and widths"
        )
    best = min(feasible, key=lambda c: (c.predicted_loss_nats, c.latency_ms))
    return Choice(**best.model_dump(exclude={"feasible"}), budget_ms=budget_ms, candidates=tuple(candidates))

"""The figures that MLflow shows beside a run; each takes plain JSON values and returns a matplotlib figure."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashslm.models.operator_spec import COLORS, LABELS
from flashslm.reporting.charts import own_entries
from flashslm.reporting.html import CURVES, RunArtifacts, needle_heat, recall_heat

VARIANT_COLORS = {"on": "#2563eb", "off": "#d97706"}


def figures(run: RunArtifacts) -> dict[str, Figure]:
    """The figures that MLflow gets, by file stem."""
    drawn = {
        "latency_by_width": latency_by_width(run.latency_table, run.latency_context, run.latency_batch),
        "latency_by_context": latency_by_context(run.latency_table, run.latency_batch),
        "depth_width": depth_width_curves(run.depth_width),
        "scaling_fit": scaling_fit(run.scaling),
        "pareto": pareto(run.history, run.pareto, run.best),
    }
    curves = {key.replace("/", "_"): ablation_curves(run.ablation, key, label) for key, label in CURVES.items()}
    heats = {"needle_heat": needle_heat(run.evaluation["needle"])}
    heats |= {"recall_heat": recall_heat(run.evaluation.get("recall", []))}
    drawn |= {stem: heat_map(heat) for stem, heat in heats.items() if heat}
    return drawn | {f"ablation_{stem}": figure for stem, figure in curves.items()}


def _figure(draw: Callable[[Axes], None], xlabel: str, ylabel: str) -> Figure:
    figure = Figure(figsize=(6.0, 3.6), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    draw(axes)
    if handles := axes.get_legend_handles_labels()[0]:
        figure.legend(loc="outside upper center", ncols=min(3, len(handles)), frameon=False, fontsize=8)
    return figure


def heat_map(heat: dict[str, Any]) -> Figure:
    """Shares by depth, a row each, as the report has them."""
    shares = [[cell["share"] for cell in row["cells"]] for row in heat["rows"]]

    def draw(axes: Axes) -> None:
        axes.grid(visible=False)
        axes.imshow(shares, vmin=0, vmax=1, cmap="RdYlGn", aspect="auto")
        axes.set_xticks(range(len(heat["depths"])), heat["depths"], fontsize=7)
        axes.set_yticks(range(len(shares)), [row["label"] for row in heat["rows"]], fontsize=7)
        for y, row in enumerate(shares):
            for x, share in enumerate(row):
                axes.text(x, y, f"{share:.2f}", ha="center", va="center", fontsize=7)

    return _figure(draw, "depth in the text", "")


def latency_by_width(table: dict[str, Any], context: int, batch: int) -> Figure:
    """Decode latency of each operator over width, with the 10-90 % band, at the context measured nearest."""
    nearest = min({e["context"] for e in table["entries"]}, key=lambda measured: abs(measured - context))

    def draw(axes: Axes) -> None:
        for operator, color in COLORS.items():
            rows = sorted(
                (e["width"], e["median_ms"], e["p10_ms"], e["p90_ms"])
                for e in own_entries(table)
                if e["operator"] == operator and e["context"] == nearest and e["batch"] == batch
            )
            if rows:
                widths, medians, low, high = zip(*rows, strict=True)
                axes.plot(widths, medians, marker="o", color=color, label=LABELS[operator])
                axes.fill_between(widths, low, high, color=color, alpha=0.15, linewidth=0)
        axes.set_ylim(bottom=0)

    return _figure(draw, f"width (context {nearest})", "ms per token")


def latency_by_context(table: dict[str, Any], batch: int) -> Figure:
    """Decode latency of each operator over context, at the table's largest width."""
    width = max(e["width"] for e in table["entries"])

    def draw(axes: Axes) -> None:
        for operator, color in COLORS.items():
            rows = sorted(
                (e["context"], e["median_ms"])
                for e in own_entries(table)
                if e["operator"] == operator and e["width"] == width and e["batch"] == batch
            )
            if rows:
                axes.plot(*zip(*rows, strict=True), marker="o", color=color, label=LABELS[operator])
        axes.set_ylim(bottom=0)

    return _figure(draw, f"context (width {width})", "ms per token")


def depth_width_curves(sweep: dict[str, Any]) -> Figure:
    """Whole-model decode latency over depth at matched parameters, one line a budget and context."""
    lines: dict[tuple[int, int], list[tuple[int, float, int]]] = defaultdict(list)
    for p in sweep["points"]:
        lines[(p["budget_parameters"], p["context"])].append((p["depth"], p["median_ms"], p["width"]))

    def draw(axes: Axes) -> None:
        for (budget, context), rows in sorted(lines.items()):
            depths, latencies, widths = zip(*sorted(rows), strict=True)
            axes.plot(depths, latencies, marker="o", label=f"{budget / 1e6:g}M parameters, context {context}")
            if context == max(c for b, c in lines if b == budget):  # the contexts' lines lie close together
                for depth, latency, width in zip(depths, latencies, widths, strict=True):
                    axes.annotate(f"w{width}", (depth, latency), fontsize=7, xytext=(-8, 5), textcoords="offset points")
        axes.set_ylim(bottom=0)

    return _figure(draw, "depth (blocks)", "ms per token")


def scaling_fit(scaling: dict[str, Any]) -> Figure:
    """Measured against fitted loss; the held-out larger model apart."""

    def draw(axes: Axes) -> None:
        for key, color, marker in (("points", "#2563eb", "o"), ("holdout", "#dc2626", "D")):
            measured = [p["loss_nats"] for p in scaling[key]]
            fitted = [p["fitted_nats"] for p in scaling[key]]
            axes.scatter(measured, fitted, color=color, marker=marker, s=22, label=f"{key} ({len(measured)})")
        losses = [p["loss_nats"] for p in scaling["points"] + scaling["holdout"]]
        axes.plot([min(losses), max(losses)], [min(losses), max(losses)], color="#9ca3af", linestyle="--", zorder=0)

    return _figure(draw, "measured loss (nats)", "the law's loss (nats)")


def pareto(history: list[dict[str, Any]], front: list[dict[str, Any]], best: dict[str, Any]) -> Figure:
    """Every trained candidate by latency and proxy loss, the Pareto front and the winner."""

    def draw(axes: Axes) -> None:
        trained = [t for t in history if t["loss_nats"] is not None]
        points = axes.scatter(
            [t["latency_ms"] for t in trained],
            [t["loss_nats"] for t in trained],
            c=[t["slot"] for t in trained],
            cmap="viridis",
            s=28,
        )
        bar = axes.figure.colorbar(points, ax=axes)
        bar.set_label("trial")
        steps = sorted((t["latency_ms"], t["loss_nats"]) for t in front)
        axes.step(*zip(*steps, strict=True), where="post", color="#dc2626", linewidth=1, label="Pareto front")
        axes.scatter([best["latency_ms"]], [best["loss_nats"]], marker="*", s=180, color="#dc2626", label="chosen")

    return _figure(draw, "table latency (ms per token)", "proxy loss (nats)")


def ablation_curves(ablation: dict[str, Any], key: str, label: str) -> Figure:
    """One metric over steps for every run, coloured by variant."""

    def draw(axes: Axes) -> None:
        for run, curves in ablation["curves"].items():
            if curves[key]:
                color = VARIANT_COLORS[run.split(",")[0]]
                axes.plot(*zip(*curves[key], strict=True), color=color, alpha=0.8, linewidth=1.2, label=f"wnorm {run}")

    return _figure(draw, "step", label)

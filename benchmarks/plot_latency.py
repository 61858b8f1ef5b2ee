"""Plot a record of benchmarks/latency_table.py: operators over width and context, the check, the depth-width sweep.

    .venv/bin/python benchmarks/plot_latency.py benchmarks/results/latency_table_<device>_<date>.json

Writes a .png and an .svg beside the record.
"""

import argparse
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashslm.benchmarking.record_plot import panels, plot_files, plot_parser
from flashslm.models.operator_spec import COLORS, LABELS, MIXERS, depends_on_context


def plot(record: dict[str, Any]) -> Figure:
    """One panel for each part that the record has."""
    parts = []
    if record.get("table"):
        parts += [(over_width, record["table"]), (over_context, record["table"])]
    if record.get("check"):
        parts.append((predicted_against_measured, record["check"]))
    if record.get("sweep"):
        parts.append((over_depth, record["sweep"]))
    if not parts:
        raise ValueError("the record has no table, no check and no sweep: nothing to plot")
    figure, row = panels(record, len(parts))
    for axes, (draw, part) in zip(row, parts, strict=True):
        axes.grid(alpha=0.25)
        draw(axes, part)
        axes.legend(frameon=False, fontsize=8)
    return figure


def over_width(axes: Axes, table: dict[str, Any]) -> None:
    """Every operator at the smallest batch and the context nearest to 8192."""
    batch = min(e["batch"] for e in table["entries"])
    context = min({e["context"] for e in table["entries"]}, key=lambda c: abs(c - 8192))
    lines = defaultdict(list)
    for e in table["entries"]:
        if (e["batch"], e["context"]) == (batch, context):
            lines[e["operator"]].append((e["width"], 1e3 * e["median_ms"]))
    for operator, points in lines.items():
        axes.plot(*zip(*sorted(points), strict=True), marker="o", color=COLORS[operator], label=LABELS[operator])
    axes.set_yscale("log")
    axes.set_xlabel(f"width (batch {batch}, context {context})")
    axes.set_ylabel("microseconds per step")


def over_context(axes: Axes, table: dict[str, Any]) -> None:
    """Mixers at the middle width, one line per batch: solid where the cost grows with the context, dotted elsewhere."""
    widths = sorted({e["width"] for e in table["entries"]})
    width = widths[len(widths) // 2]
    lines = defaultdict(list)
    for e in table["entries"]:
        if e["width"] == width and e["operator"] in MIXERS:
            lines[e["operator"], e["batch"]].append((e["context"], e["median_ms"]))
    batches = sorted({batch for _, batch in lines})
    for (operator, batch), points in sorted(lines.items()):
        shade = 0.3 + 0.7 * (batches.index(batch) + 1) / len(batches)
        grows = depends_on_context(operator)
        # The first panel names the colors of the dotted lines.
        line, label = ("-o", f"{LABELS[operator]}, batch {batch}") if grows else (":", None)
        axes.plot(*zip(*sorted(points), strict=True), line, color=COLORS[operator], alpha=shade, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel(f"context (width {width}; dotted: mixers that do not depend on it)")
    axes.set_ylabel("milliseconds per step")


def predicted_against_measured(axes: Axes, check: dict[str, Any]) -> None:
    """Whole models: relative error of the prediction over the measured time."""
    for batch in sorted({m["batch"] for m in check["models"]}):
        models = [m for m in check["models"] if m["batch"] == batch]
        errors = [100 * (m["predicted_ms"] / m["measured_ms"] - 1) for m in models]
        axes.scatter([m["measured_ms"] for m in models], errors, s=18, label=f"batch {batch}")
    axes.axhline(0, color="#111827", linewidth=0.8)
    axes.set_xscale("log")
    axes.set_xlabel(
        f"measured ms per step (median error {100 * check['median_relative']:.1f} %, "
        f"worst {100 * check['worst_relative']:.1f} %)"
    )
    axes.set_ylabel("predicted above measured, %")


def over_depth(axes: Axes, sweep: dict[str, Any]) -> None:
    """Time per token at matched parameters, one line per budget and number of decoded tokens."""
    lines = defaultdict(list)
    for p in sweep["points"]:
        lines[p["budget_parameters"], p["context"]].append((p["depth"], p["median_ms"]))
    for (budget, context), points in sorted(lines.items()):
        label = f"{budget / 1e9:g}B parameters, {context} tokens"
        axes.plot(*zip(*sorted(points), strict=True), marker="o", label=label)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(f"depth (repeats of {sweep['block']})")
    axes.set_ylabel("ms per token, batch 1")


def make_parser() -> argparse.ArgumentParser:
    return plot_parser(__doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    plot_files(make_parser(), plot, arguments)


if __name__ == "__main__":
    main()

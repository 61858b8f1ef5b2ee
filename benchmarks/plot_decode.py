"""Plot a record of benchmarks/decode.py: latency beside the peer and the bandwidth's floor, operators, batches.

    .venv/bin/python benchmarks/plot_decode.py benchmarks/results/decode_<device>_<date>.json

Writes a .png and an .svg beside the record.
"""

import sys
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashslm.benchmarking.operators import RESIDUAL
from flashslm.benchmarking.record_plot import panels, save_beside
from flashslm.models.operator_spec import COLORS, LABELS, LM_HEAD, OPERATOR_SPECS

OURS, PEER, FLOOR = "#2563eb", "#9ca3af", "#111827"
STYLES = {spec.name: (spec.label, spec.color) for spec in OPERATOR_SPECS.values()}
STYLES |= {LM_HEAD: (LABELS[LM_HEAD], COLORS[LM_HEAD]), RESIDUAL: (RESIDUAL, "#e5e7eb")}


def plot(record: dict[str, Any]) -> Figure:
    """One panel for each part that the record has."""
    parts = []
    if record["latency"]:
        parts += [(latency, record["latency"]), (operators, record["latency"])]
    if record["batches"]:
        parts.append((batches, record["batches"]))
    if not parts:
        raise ValueError("the record has neither latencies nor batches: nothing to plot")
    figure, row = panels(record, len(parts))
    for axes, (draw, results) in zip(row, parts, strict=True):
        axes.grid(alpha=0.25, axis="x")
        draw(axes, results)
        axes.legend(frameon=False, fontsize=8, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    return figure


def latency(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Median TPOT with its p90, the peer's, and the time that the bytes alone take at the measured bandwidth."""
    for row, result in enumerate(results):
        spread = [[0], [result["tpot_ms_p90"] - result["tpot_ms_median"]]]
        axes.barh(row - 0.18, result["tpot_ms_median"], 0.34, xerr=spread, color=OURS, label=_once("this engine", row))
        floor_ms = 1e3 * result["bytes_per_token"] / result["bandwidth_measured_bytes_per_s"]
        axes.plot([floor_ms] * 2, [row - 0.38, row + 0.02], color=FLOOR, label=_once("bandwidth floor", row))
    for row, result in enumerate(results):
        if peer := result["peer"]:
            axes.barh(row + 0.18, peer["tpot_ms_median"], 0.34, color=PEER)
            text = f" {peer['preset']} in transformers, {peer['ratio']:.1f}x"
            axes.text(0, row + 0.18, text, va="center", fontsize=7)
    _rows(axes, results, "ms per token")


def operators(axes: Axes, results: list[dict[str, Any]]) -> None:
    """What each kind of operator takes of a step; a residual below 0, where kinds overlap, is left out."""
    shown = set()
    for row, result in enumerate(results):
        left = 0.0
        for name, share in result["operator_share"].items():
            width = max(0.0, share * result["tpot_ms_median"])
            label, color = STYLES[name]
            axes.barh(row, width, 0.6, left=left, color=color, label="" if name in shown else label)
            left += width
            shown.add(name)
    _rows(axes, results, "ms per token, by operator")


def batches(axes: Axes, results: list[dict[str, Any]]) -> None:
    """Tokens a second over the batch size."""
    for preset in dict.fromkeys(result["preset"] for result in results):
        of_preset = [result for result in results if result["preset"] == preset]
        axes.plot([r["batch"] for r in of_preset], [r["tokens_per_s"] for r in of_preset], marker="o", label=preset)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({result["batch"] for result in results})
    axes.set_xticks(sizes, list(map(str, sizes)))
    axes.set_xlabel(f"batch, context {results[0]['context']}")
    axes.set_ylabel("tokens per second")


def _rows(axes: Axes, results: list[dict[str, Any]], xlabel: str) -> None:
    axes.set_yticks(range(len(results)), [f"{r['preset']}\n{r['context']}" for r in results], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)


def _once(label: str, row: int) -> str:
    return label if row == 0 else ""


if __name__ == "__main__":
    save_beside(sys.argv[1:], plot)

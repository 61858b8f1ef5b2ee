"""Plot a record of benchmarks/decode.py: latency beside the peers and the bandwidth's floor, operators, batches.

    .venv/bin/python benchmarks/plot_decode.py benchmarks/results/decode_<device>_<date>.json

Writes a .png and an .svg beside the record.
"""

import argparse
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashslm.benchmarking.operators import RESIDUAL
from flashslm.benchmarking.record_plot import panels, plot_files, plot_parser
from flashslm.models.operator_spec import COLORS, LABELS, LM_HEAD, OPERATOR_SPECS

OURS, PEER, FLOOR = "#2563eb", "#9ca3af", "#111827"
LIBRARIES = {"hf": "transformers", "vllm": "vLLM", "vllm-plugin": "vLLM by the plug-in"}
STYLES = {spec.name: (spec.label, spec.color) for spec in OPERATOR_SPECS.values()}
STYLES |= {LM_HEAD: (LABELS[LM_HEAD], COLORS[LM_HEAD]), RESIDUAL: (RESIDUAL, "#e5e7eb")}


def plot(record: dict[str, Any]) -> Figure:
    """One panel for each part that the record has."""
    parts = []
    if record.get("latency"):
        parts += [(latency, record["latency"]), (operators, record["latency"])]
    if record.get("batches"):
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
    """Median TPOT with its p90, the peers', and the time that the bytes alone take at the measured bandwidth."""
    height = 0.8 / (1 + max(len(result["peers"]) for result in results))
    for row, result in enumerate(results):
        top = row - 0.4 + height / 2
        spread = [[0], [result["tpot_ms_p90"] - result["tpot_ms_median"]]]
        axes.barh(top, result["tpot_ms_median"], height, xerr=spread, color=OURS, label=_once("this engine", row))
        floor_ms = 1e3 * result["bytes_per_token"] / result["bandwidth_measured_bytes_per_s"]
        axes.plot([floor_ms] * 2, [top - height / 2, top + height / 2], color=FLOOR, label=_once("bandwidth", row))
        for place, peer in enumerate(result["peers"], 1):
            axes.barh(top + place * height, peer["tpot_ms_median"], height * 0.94, color=PEER)
            text = f" {peer['preset']} in {LIBRARIES[peer['name']]}, {peer['ratio']:.1f}x"
            axes.text(0, top + place * height, text, va="center", fontsize=6)
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
    """Tokens per second over the batch size, ours and, dashed, those in vLLM."""
    for preset in dict.fromkeys(result["preset"] for result in results):
        of_preset = [result for result in results if result["preset"] == preset]
        (line,) = axes.plot(*_rates(of_preset), marker="o", label=preset)
        if peers := [peer | {"batch": result["batch"]} for result in of_preset for peer in result["peers"]]:
            name = f"{preset} in vLLM"
            axes.plot(*_rates(peers), marker="o", linestyle="--", color=line.get_color(), label=name)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    sizes = sorted({result["batch"] for result in results})
    axes.set_xticks(sizes, list(map(str, sizes)))
    axes.set_xlabel(f"batch, context {results[0]['context']}")
    axes.set_ylabel("tokens per second")


def _rates(results: list[dict[str, Any]]) -> tuple[list[int], list[float]]:
    return [result["batch"] for result in results], [result["tokens_per_s"] for result in results]


def _rows(axes: Axes, results: list[dict[str, Any]], xlabel: str) -> None:
    axes.set_yticks(range(len(results)), [f"{r['preset']}\n{r['context']}" for r in results], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel(xlabel)


def _once(label: str, row: int) -> str:
    return label if row == 0 else ""


def make_parser() -> argparse.ArgumentParser:
    return plot_parser(__doc__)


def main(arguments: Sequence[str] | None = None) -> None:
    plot_files(make_parser(), plot, arguments)


if __name__ == "__main__":
    main()

"""The figure of a record: panels in a row under a line that says of which device, day and commit they are."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

PANEL_INCHES = (5.2, 4.2)


def panels(record: dict[str, Any], count: int) -> tuple[Figure, list[Axes]]:
    """A figure of `count` empty panels, and those."""
    width, height = PANEL_INCHES
    figure = Figure(figsize=(width * count, height), layout="constrained")
    figure.suptitle(f"{record['device']}, {record['date']}, commit {(record['commit'] or 'unknown')[:10]}", fontsize=9)
    row: list[Axes] = list(figure.subplots(1, count, squeeze=False)[0])
    for axes in row:
        axes.spines[["top", "right"]].set_visible(False)
    return figure, row


def save_beside(files: Iterable[str], plot: Callable[[dict[str, Any]], Figure]) -> None:
    """Write the plot of each file of a record as .png and .svg beside it, and print their paths."""
    for source in map(Path, files):
        figure = plot(json.loads(source.read_text(encoding="utf-8")))
        for suffix in (".png", ".svg"):
            figure.savefig(source.with_suffix(suffix), dpi=150)
            print(source.with_suffix(suffix))

"""The figure of a record: panels in a row under a line that says of which device, day and commit they are."""

import argparse
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flashslm.benchmarking.options import INPUT, before_work, script_parser
from flashslm.benchmarking.record import read_record
from flashslm.infra.state_files import require_writable_directory

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


def plot_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser of records' files; `text` is the script's docstring."""
    parser = script_parser(text)
    parser.add_argument("files", nargs="+", type=INPUT, help="records")
    return parser


def plot_files(
    parser: argparse.ArgumentParser, plot: Callable[[dict[str, Any]], Figure], arguments: Sequence[str] | None
) -> None:
    """Plot the records that the arguments name; one that has nothing to plot is refused as a wrong option is."""
    files = parser.parse_args(arguments).files
    with before_work(parser):
        for file in files:
            require_writable_directory(file.parent)
        save_beside(files, plot)


def save_beside(files: Iterable[Path], plot: Callable[[dict[str, Any]], Figure]) -> None:
    """Write the plot of each file of a record as .png and .svg beside it, and print their paths."""
    for source in files:
        figure = plot(read_record(source, "device", "date", "commit"))
        for suffix in (".png", ".svg"):
            figure.savefig(source.with_suffix(suffix), dpi=150)
            print(source.with_suffix(suffix))

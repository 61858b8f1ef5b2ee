"""What commands print: results on stdout, all else on stderr."""

import json
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

console = Console(stderr=True)
# For lines with a path or a name: brackets in it are printed, and the line is not broken, so that it can be copied.
AS_IT_IS: Any = {"highlight": False, "markup": False, "soft_wrap": True}


def show(result: Any, as_json: bool) -> None:
    """One JSON object, or aligned lines for a person."""
    if as_json:
        print(json.dumps(result))
        return
    out = Console()
    width = max((len(key) for key in result), default=0)
    for key, value in result.items():
        shown = f"{value:.5g}" if isinstance(value, float) else value
        shown = ", ".join(map(str, value)) if isinstance(value, list) else shown
        out.print(f"{key:<{width}}  {shown}", **AS_IT_IS)


def print_whole(table: Table) -> None:
    """Where the terminal is too narrow for the table's words, lines go on below: no column and no digit is cut off."""
    out, natural = Console(), natural_width(table)
    if natural.minimum > out.width:
        out.width = natural.maximum
    out.print(table)


def natural_width(table: Table) -> Measurement:
    """Characters that a table takes where the terminal does not limit it, and with its words below each other."""
    return Console(width=1000).measure(table)

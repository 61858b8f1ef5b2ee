"""Two models beside each other: rows for a terminal, and a self-contained HTML page."""

from typing import Any

from flashslm.reporting.html import page
from flashslm.statistics import judge

COLUMNS = ("metric", "first", "second", "difference", "95 % interval", "p", "the second is")


UNPAIRED = "not on the same items, read in the same way, so the difference says nothing (evaluate both by --config)"


def comparison_rows(comparison: dict[str, Any]) -> list[dict[str, str]]:
    """COLUMNS of every metric, as texts; the interval is that of the difference, paired by item."""
    return [_row(row, *comparison["errors"].get(row["metric"], (None, None))) for row in comparison["rows"]]


def render_comparison(comparison: dict[str, Any]) -> str:
    rows = comparison_rows(comparison)
    return page("comparison.html.j2", comparison=comparison, columns=COLUMNS, rows=rows, unpaired=UNPAIRED)


def _row(row: dict[str, Any], first_error: float | None, second_error: float | None) -> dict[str, str]:
    first, second, low, high = row["champion"], row["challenger"], row["low"], row["high"]
    cells = {
        "metric": row["metric"],
        "first": _number(first, first_error),
        "second": _number(second, second_error),
        "difference": f"{second - first:+.5g}",
        "95 % interval": "",
        "p": "" if row["p_value"] is None else f"{row['p_value']:.2g}",
        "the second is": "",
    }
    if low is not None and high is not None:
        cells["95 % interval"] = f"{low - first:+.5g} to {high - first:+.5g} ({row['method']}, {row['items']:,} items)"
        cells["the second is"] = judge(low, high, first, higher_is_better=row["higher_is_better"])
    return cells


def _number(value: float, error: float | None) -> str:
    shown = f"{value:,.0f}" if value == int(value) and abs(value) >= 1000 else f"{value:.5g}"
    return shown + ("" if error is None else f" ± {error:.2g}")

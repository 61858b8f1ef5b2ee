"""Figures of the report: every measured operator is drawn."""

from flashslm.models.operator_spec import COLORS, LABELS, LM_HEAD, OPERATORS
from flashslm.reporting.plots import latency_by_context, latency_by_width

ENTRIES = [
    {
        "operator": operator,
        "width": width,
        "context": context,
        "batch": 1,
        "median_ms": 1.0,
        "p10_ms": 0.9,
        "p90_ms": 2.0,
    }
    for operator in (*OPERATORS, LM_HEAD)
    for width in (64, 128)
    for context in (32, 64)
]


def test_every_operator_of_a_table_is_drawn_and_named() -> None:
    for figure in (latency_by_width({"entries": ENTRIES}, 32, 1), latency_by_context({"entries": ENTRIES}, 1)):
        lines = figure.axes[0].get_lines()
        assert {line.get_label(): line.get_color() for line in lines} == {LABELS[o]: COLORS[o] for o in LABELS}
    assert len(set(COLORS.values())) == len(COLORS)

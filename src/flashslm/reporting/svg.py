"""Line and scatter charts as plain SVG: a point's `data-tip` is shown by the page's script, its <title> without one."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 290  # of the view box: a phone shows it smaller, and its text stays readable
LEFT, RIGHT, TOP, BOTTOM = 66, 12, 12, 44
Mark = Literal["line", "dot", "ring", "star"]
Point = tuple[float, float]


@dataclass(frozen=True)
class LegendItem:
    label: str
    color: str
    dash: str = ""
    mark: Mark = "line"


@dataclass(frozen=True)
class Chart:
    """A finished chart: the drawing, and its legend, which the page sets below it so that it is never cut."""

    svg: Markup
    legend: tuple[LegendItem, ...]


@dataclass
class Canvas:
    """Collects shapes in data coordinates. Ranges are (low, high) with low < high; a log axis needs low > 0."""

    x_label: str
    y_label: str
    x_range: Point
    y_range: Point
    x_is_log: bool = False
    _shapes: list[str] = field(default_factory=list)
    _legend: list[LegendItem] = field(default_factory=list)

    def x(self, value: float) -> float:
        low, high, at = *self.x_range, value
        if self.x_is_log:
            low, high, at = math.log(low), math.log(high), math.log(value)
        return LEFT + (at - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        low, high = self.y_range
        return HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def line(self, points: Sequence[Point], color: str, label: str = "", dash: str = "", is_step: bool = False) -> None:
        """A polyline through the points; one that `is_step` keeps its height up to the next point."""
        steps = [(x, before[1]) for before, (x, _) in pairwise(points)] if is_step else []
        path = [p for pair in zip(points, [*steps, points[-1]], strict=True) for p in pair] if is_step else points
        self._shapes.append(
            f'<polyline points="{self._path(path)}" fill="none" stroke="{color}" stroke-width="1.8" '
            f'stroke-linejoin="round" stroke-dasharray="{dash}"/>'
        )
        if label:
            self._legend.append(LegendItem(label, color, dash))

    def band(self, low: Sequence[Point], high: Sequence[Point], color: str) -> None:
        outline = self._path([*low, *reversed(high)])
        self._shapes.append(f'<polygon points="{outline}" fill="{color}" fill-opacity="0.13"/>')

    def dot(self, at: Point, color: str, tip: str, radius: float = 4, row: str = "", is_hollow: bool = False) -> None:
        """A point with a tip; `row` is the id of the table row that describes the same thing."""
        fill = "#ffffff" if is_hollow else color
        self._shapes.append(
            f'<circle cx="{self.x(at[0]):.1f}" cy="{self.y(at[1]):.1f}" r="{radius}" fill="{fill}" stroke="{color}" '
            f'stroke-width="1.5" tabindex="0" data-tip="{escape(tip)}" data-row="{escape(row)}">'
            f"<title>{escape(tip)}</title></circle>"
        )

    def star(self, at: Point, color: str, tip: str, row: str = "") -> None:
        x, y = self.x(at[0]), self.y(at[1])
        corners = [(10 if i % 2 == 0 else 4.2, math.pi * (i / 5 - 0.5)) for i in range(10)]
        points = " ".join(f"{x + r * math.cos(a):.1f},{y + r * math.sin(a):.1f}" for r, a in corners)
        self._shapes.append(
            f'<polygon points="{points}" fill="{color}" stroke="#ffffff" tabindex="0" data-tip="{escape(tip)}" '
            f'data-row="{escape(row)}"><title>{escape(tip)}</title></polygon>'
        )

    def vertical(self, at: float, label: str, color: str = "#6b7280") -> None:
        """A dashed line over the whole height, its label beside its upper end."""
        x = self.x(at)
        side = ("end", -4) if x > WIDTH * 0.6 else ("start", 4)
        ends = f'x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"'
        self._shapes.append(
            f'<line {ends} stroke="{color}" stroke-dasharray="5 4"/>'
            f'<text x="{x + side[1]:.1f}" y="{TOP + 10}" text-anchor="{side[0]}" fill="{color}">{escape(label)}</text>'
        )

    def legend(self, label: str, color: str, mark: Mark) -> None:
        self._legend.append(LegendItem(label, color, mark=mark))

    def chart(self, title: str, x_ticks: Sequence[float] = ()) -> Chart:
        """With axes; `x_ticks` are drawn instead of round numbers."""
        parts = [self._grid(x_ticks), *self._shapes]
        middle_x, middle_y = (LEFT + WIDTH - RIGHT) / 2, (TOP + HEIGHT - BOTTOM) / 2
        svg = (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">'
            + "".join(parts)
            + f'<text x="{middle_x}" y="{HEIGHT - 8}" text-anchor="middle">{escape(self.x_label)}</text>'
            f'<text transform="translate(14 {middle_y}) rotate(-90)" text-anchor="middle">'
            f"{escape(self.y_label)}</text></svg>"
        )
        return Chart(Markup(svg), tuple(self._legend))

    def _grid(self, x_ticks: Sequence[float]) -> str:
        bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
        parts = []
        for value, text in tick_texts(ticks(*self.y_range) if self.y_label else ()):
            y = self.y(value)
            parts.append(f'<line class="grid" x1="{LEFT}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{text}</text>')
        for value, text in tick_texts(x_ticks or ticks(*self.x_range)):
            x = self.x(value)
            parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{TOP}" y2="{bottom}"/>')
            parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{text}</text>')
        return "".join(parts) + f'<path class="axis" d="M{LEFT},{TOP}V{bottom}H{right}"/>'

    def _path(self, points: Sequence[Point]) -> str:
        return " ".join(f"{self.x(x):.1f},{self.y(y):.1f}" for x, y in points)


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) within the range."""
    step = 10.0 ** math.floor(math.log10((high - low) / count))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= count)
    return [index * step for index in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def tick_texts(values: Sequence[float]) -> list[tuple[float, str]]:
    """Each value with its text, all with as many decimals as the one that needs most; zero has none."""
    texts = [f"{value:.6g}" for value in values]
    if any("e" in text for text in texts):
        return list(zip(values, texts, strict=True))
    decimals = max((len(text.partition(".")[2]) for text in texts), default=0)
    return [(value, f"{value:.{decimals}f}" if value else "0") for value in values]


def around(values: Sequence[float], from_zero: bool = False) -> Point:
    """A range that holds all values with some room, also where they are all equal."""
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
    return (0.0, high + room) if from_zero and low >= 0 else (low - room, high + room)

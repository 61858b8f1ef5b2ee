"""The report's charts, drawn from plain JSON values."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from flashslm.config import sizes_in_words
from flashslm.models.operator_spec import COLORS, LABELS
from flashslm.reporting.svg import Canvas, Chart, Mark, around

VARIANT_SHADES = {
    "on": ("#1d4ed8", "#0ea5e9", "#6366f1", "#0f766e", "#7c3aed"),
    "off": ("#c2410c", "#eab308", "#be123c", "#92400e", "#db2777"),
}
DASHES = ("", "6 3", "2 2", "8 3 2 3", "1 3")
FRONT = "#dc2626"
ORIGINS = {"seed": "#059669", "random": "#6b7280"}  # of a trial; the rest are mutations of another one
MUTATED = "#2563eb"
CHANGED = {"operator": "mixer type", "ratio": "mixer ratio", "ffn": "FFNs per mixer"}  # the other kinds say it


def latency_by_width(table: dict[str, Any], context: int, batch: int) -> Chart:
    """Decode latency of each operator over width, with the 10-90 % band, at the context measured nearest."""
    nearest = min({e["context"] for e in table["entries"]}, key=lambda measured: abs(measured - context))
    entries = [e for e in own_entries(table) if e["context"] == nearest and e["batch"] == batch]
    return _latencies(entries, "width", f"width (context {nearest})", "Decode latency of each operator over width")


def own_entries(table: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the recipe's own sizes: further ones are there for a search that varies sizes."""
    return [e for e in table["entries"] if e.get("size") is None]


def latency_by_context(table: dict[str, Any], batch: int) -> Chart:
    """Decode latency of each operator over context, at the table's largest width."""
    width = max(e["width"] for e in table["entries"])
    entries = [e for e in own_entries(table) if e["width"] == width and e["batch"] == batch]
    return _latencies(entries, "context", f"context (width {width})", "Decode latency of each operator over context")


def _latencies(entries: Sequence[dict[str, Any]], axis: str, x_label: str, title: str) -> Chart:
    xs = sorted({e[axis] for e in entries})
    canvas = Canvas(x_label, "ms per token", around(xs), around([0, *(e["p90_ms"] for e in entries)], from_zero=True))
    for operator, color in COLORS.items():
        rows = sorted((e for e in entries if e["operator"] == operator), key=lambda e: e[axis])
        if rows:
            low, high = ([(e[axis], e[key]) for e in rows] for key in ("p10_ms", "p90_ms"))
            canvas.band(low, high, color)
            canvas.line([(e[axis], e["median_ms"]) for e in rows], color, LABELS[operator])
        for e in rows:
            spread = f"{e['p10_ms']:.4f} to {e['p90_ms']:.4f}"
            tip = f"{LABELS[operator]}, {axis} {e[axis]}: {e['median_ms']:.4f} ms ({spread})"
            canvas.dot((e[axis], e["median_ms"]), color, tip, radius=3)
    return canvas.chart(title, xs if len(xs) <= 6 else ())


def predicted_and_measured(models: Sequence[dict[str, Any]], chosen: tuple[float, float] | None) -> Chart:
    """Whole models: the table's prediction over what was measured; `chosen` is (measured, predicted) of the export."""
    pairs = [(m["measured_ms"], m["predicted_ms"]) for m in models] + ([chosen] if chosen else [])
    extent = around([value for pair in pairs for value in pair], from_zero=True)
    canvas = Canvas("measured ms per token", "predicted ms per token", extent, extent)
    canvas.line([(extent[0], extent[0]), (extent[1], extent[1])], "#9ca3af", "equal", "5 4")
    for model, at in zip(models, pairs, strict=False):
        tip = f"{model['operators']} at width {model['width']}, context {model['context']}: {at[0]:.4g} ms measured, "
        canvas.dot(at, "#2563eb", f"{tip}{at[1]:.4g} predicted ({at[1] / at[0] - 1:+.1%})")
    if chosen:
        tip = f"the exported model: {chosen[0]:.4g} ms measured, {chosen[1]:.4g} predicted"
        canvas.star(chosen, FRONT, tip)
        canvas.legend("the exported model", FRONT, "star")
    return canvas.chart("Predicted against measured latency of whole models")


def depth_width(sweep: dict[str, Any]) -> Chart:
    """Whole-model decode latency over depth at matched parameters, one line per budget and context."""
    lines: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for point in sweep["points"]:
        lines[(point["budget_parameters"], point["context"])].append(point)
    depths = sorted({p["depth"] for p in sweep["points"]})
    latencies = [p["median_ms"] for p in sweep["points"]]
    canvas = Canvas("depth (blocks)", "ms per token", around(depths), around([0, *latencies], from_zero=True))
    for number, ((budget, context), points) in enumerate(sorted(lines.items())):
        color = (*COLORS.values(),)[number % len(COLORS)]
        name = f"{budget / 1e6:g}M parameters, context {context}"
        points.sort(key=lambda p: p["depth"])
        canvas.line([(p["depth"], p["median_ms"]) for p in points], color, name)
        for p in points:
            tip = f"{name}, depth {p['depth']}, width {p['width']}: {p['median_ms']:.4f} ms"
            canvas.dot((p["depth"], p["median_ms"]), color, tip)
    return canvas.chart("Latency over depth at matched parameters", depths if len(depths) <= 8 else ())


def scaling_fit(scaling: dict[str, Any]) -> Chart:
    """The law's loss over the measured loss; the held-out larger model apart."""
    every = scaling["points"] + scaling["holdout"]
    extent = around([value for p in every for value in (p["loss_nats"], p["fitted_nats"])])
    canvas = Canvas("measured loss (nats)", "the law's loss (nats)", extent, extent)
    canvas.line([(extent[0], extent[0]), (extent[1], extent[1])], "#9ca3af", "equal", "5 4")
    for key, name, color in (("points", "fitted", "#2563eb"), ("holdout", "held out", FRONT)):
        count = len(scaling[key])
        mark: Mark = "ring" if key == "holdout" else "dot"
        canvas.legend(f"{name} ({count} {'point' if count == 1 else 'points'})", color, mark)
        for p in scaling[key]:
            tip = f"{name}: depth {p['depth']}, width {p['width']}, {p['tokens']:,} tokens: {p['loss_nats']:.4f} nats"
            low, high = p["fitted_interval_nats"]
            tip += f" measured, {p['fitted_nats']:.4f} by the law (90 %: {low:.4f} to {high:.4f})"
            canvas.dot((p["loss_nats"], p["fitted_nats"]), color, tip, is_hollow=key == "holdout")
    return canvas.chart("The law's loss against measured loss")


def origin(trial: Mapping[str, Any]) -> str:
    """Where a trial's design comes from, in words."""
    if trial["parent"] is None:
        return f"{trial['mutation']} design"
    return f"trial {trial['parent']}, {CHANGED.get(trial['mutation'], trial['mutation'])} changed"


def pareto(
    history: Sequence[dict[str, Any]], front: Sequence[dict[str, Any]], best: dict[str, Any], budget_ms: float
) -> Chart:
    """Every trained candidate by latency and proxy loss, the Pareto front, the budget and the winner."""
    trained = [t for t in history if t["loss_nats"] is not None]
    latencies = [t["latency_ms"] for t in trained] + [budget_ms]
    canvas = Canvas(
        "table latency (ms per token)",
        "proxy loss (nats)",
        around(latencies),
        around([t["loss_nats"] for t in trained]),
    )
    canvas.vertical(budget_ms, f"budget {budget_ms:.4g} ms")
    steps = sorted((t["latency_ms"], t["loss_nats"]) for t in front)
    canvas.line(steps, FRONT, "Pareto front", is_step=True)
    for name, color in (("seed design", ORIGINS["seed"]), ("random", ORIGINS["random"]), ("mutation", MUTATED)):
        canvas.legend(name, color, "dot")
    for t in trained:
        at, color = (t["latency_ms"], t["loss_nats"]), ORIGINS.get(t["mutation"], MUTATED)
        canvas.dot(at, color, _trial_tip(t), radius=4.5, row=f"trial-{t['slot']}")
    canvas.star((best["latency_ms"], best["loss_nats"]), FRONT, f"chosen: {_trial_tip(best)}", f"trial-{best['slot']}")
    canvas.legend("chosen", FRONT, "star")
    return canvas.chart("Latency and proxy loss of every trial")


def _trial_tip(t: Mapping[str, Any]) -> str:
    sizes = [sizes_in_words(t["sizes"])] if t.get("sizes") else []
    design = [t["operators"], f"width {t['width']}", *sizes, f"{t['parameters']:,} parameters"]
    what = f"trial {t['slot']}: {', '.join(design)}"
    return f"{what}; {t['latency_ms']:.4f} ms, {t['loss_nats']:.4f} nats; {origin(t)}"


def ablation_curves(ablation: dict[str, Any], key: str, label: str) -> Chart | None:
    """One metric over steps for every run; each variant has its colours, each seed a shade and a dash of its own."""
    runs = {name: curves[key] for name, curves in ablation["curves"].items() if curves[key]}
    if not runs:
        return None
    steps, values = zip(*(point for points in runs.values() for point in points), strict=True)
    canvas = Canvas("step", label, around([0, *steps], from_zero=True), around(values))
    seen: dict[str, int] = defaultdict(int)
    for name, points in runs.items():
        variant = name.split(",")[0]
        number = seen[variant]
        seen[variant] += 1
        shades = VARIANT_SHADES[variant]
        canvas.line(points, shades[number % len(shades)], f"wnorm {name}", DASHES[number % len(DASHES)])
    return canvas.chart(f"{label} of every run")


def interval(value: float, low: float, high: float, label: str) -> Chart:
    """A difference with its interval, beside zero."""
    canvas = Canvas(label, "", around([0.0, low, high]), (0.0, 2.0))
    canvas.vertical(0.0, "no difference")
    canvas.line([(low, 1.0), (high, 1.0)], "#1d4ed8", "95 % interval")
    canvas.dot((value, 1.0), "#1d4ed8", f"{value:+.4f} ({low:+.4f} to {high:+.4f})", radius=6)
    return canvas.chart(f"{label} with its interval")


def shares(parts: Iterable[tuple[str, int, float]]) -> list[dict[str, Any]]:
    """(operator, layers, ms of one) as rows: name, colour, ms of all its layers, share of the sum."""
    rows = [(operator, count, count * each_ms) for operator, count, each_ms in parts]
    total_ms = sum(ms for _, _, ms in rows)
    return [
        {
            "label": LABELS[o],
            "color": COLORS[o],
            "layers": n,
            "each_ms": ms / n,
            "all_ms": ms,
            "share": ms / total_ms,
        }
        for o, n, ms in rows
    ]

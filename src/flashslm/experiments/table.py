"""An experiment's record as Markdown: models, means over seeds, differences with their intervals, rankings."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

NOT_SHOWN = ("loss_nats", "bits_per_byte", "needle_margin")  # in the record; perplexity and shares say as much
FACTORS = ("weight_norm", "meta_tokens", "steps")
Run = dict[str, Any]


def markdown(record: Run) -> str:
    """The tables of a record; what is not there yet has no table."""
    label = _labels(record["means"])
    done, planned, device = len(record["cells"]), record["cells_planned"], record["device"]
    state = f"{done} of {planned} runs, {device}, {record['date']}, commit {record['commit'] or 'unknown'}."
    failed = [f"Failed: {label(c)}, seed {c['seed']}: {c['failed']}" for c in record["cells"] if c["failed"]]
    parts = [
        _models(record["models"]),
        _means(record["means"], label),
        _differences(_shown(record["differences"]), label),
        _rankings(_shown(record["rankings"])),
    ]
    head = [f"# {record['subject']}", "", record["recipe"]["experiment"]["question"], "", state, *failed, ""]
    return "\n".join([*head, *(part for part in parts if part)])


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    if not lines:
        return ""
    return "\n".join([f"| {' | '.join(columns)} |", "|" + "---|" * len(columns), *lines, ""])


def _models(models: Sequence[Run]) -> str:
    def row(model: Run) -> list[str]:
        times = [_number(model[name], "{:.4f}") for name in ("measured_ms", "predicted_ms")]
        shape = [f"`{model['operators']}`", str(model["width"]), f"{model['parameters']:,}"]
        return [model["name"], *shape, *times, _number(model.get("prediction_error"), "{:+.1%}")]

    return _table(("model", "operators", "width", "parameters", "ms/token", "table, ms", "error"), map(row, models))


def _means(groups: Sequence[Run], label: Callable[[Run], str]) -> str:
    metrics = [name for name in (groups[0]["metrics"] if groups else ()) if not name.startswith(NOT_SHOWN)]

    def row(group: Run) -> list[str]:
        return [label(group), str(len(group["seeds"])), *(_mean(group["metrics"][name]) for name in metrics)]

    return _table(("run", "seeds", *metrics), map(row, groups))


def _mean(found: dict[str, float | None]) -> str:
    return f"{found['mean']:.4g}" + _number(found["spread"], " ± {:.2g}")


def _differences(found: Sequence[Run], label: Callable[[Run], str]) -> str:
    def row(of: Run) -> list[str]:
        interval = f"{of['low']:+.4g} to {of['high']:+.4g}" if "low" in of else "one seed"
        against = f"{of['factor'].replace('_', ' ')} {of['reference']}"
        return [
            label(of),
            against,
            of["metric"],
            f"{of['difference']:+.4g}",
            interval,
            str(len(of["by_seed"])),
            of["is"],
        ]

    columns = ("run", "compared with", "metric", "difference", "95 % interval", "seeds", "the run is")
    return _table(columns, map(row, found))


def _rankings(found: Sequence[Run]) -> str:
    def row(of: Run) -> list[str]:
        interval = f"{of['low']:.2f} to {of['high']:.2f}"
        budgets = [str(of["steps"]), str(of["longer"]), of["metric"]]
        return [*budgets, f"{of['value']:.3f}", interval, str(of["items"]), str(len(of["seeds"]))]

    return _table(("steps", "longer", "metric", "Spearman", "95 % interval", "models", "seeds"), map(row, found))


def _shown(found: Sequence[Run]) -> list[Run]:
    return [of for of in found if not of["metric"].startswith(NOT_SHOWN)]


def _labels(groups: Sequence[Run]) -> Callable[[Run], str]:
    """How a run is called: its model, and those factors that differ between runs."""
    varied = [name for name in FACTORS if len({group[name] for group in groups}) > 1]

    def label(run: Run) -> str:
        return ", ".join([run["model"], *(f"{name.replace('_', ' ')} {run[name]}" for name in varied)])

    return label


def _number(value: float | None, form: str) -> str:
    return form.format(value) if value is not None else ""

"""Where the best learning rate of each width is: one design at several widths and rates, weight-normalised or not.

    .venv/bin/python benchmarks/learning_rates.py --directory DIR [--config configs/h200-proxy.yaml]
        [--operators "DFMF AFMF DFMF"] [--widths 256 512 1024] [--rates 0.0005 0.001 0.002 0.004 0.008]
        [--weight-norm off on] [--max-minutes M] [--output FILE] [--set OVERRIDE ...]

A search ranks candidates of different widths at one rate, which is fair only as far as the optimum stays where it is.
The text, the sizes and the short training (`search`) are the recipe's. DIR keeps the prepared text. The record is
written after every training and a training that it holds is not repeated. Exit code 3: cut off, call again.

For each width, `best` has the rate of lowest validation loss, the optimum of a parabola through it and its neighbours
over the rate's logarithm (null at an edge: give further rates), and what the recipe's own rate costs there. The last
line of stdout is the record without its trainings.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from flashslm.benchmarking.options import (
    COUNT,
    INPUT,
    MINUTES,
    NEW_DIRECTORY,
    OPERATORS,
    OUTPUT,
    OVERRIDE,
    POSITIVE,
    before_work,
    script_parser,
)
from flashslm.benchmarking.record import read_record, result_name
from flashslm.benchmarking.short_training import OpenedRecipe, open_recipe, train_shortly
from flashslm.config import RunConfig
from flashslm.data.prepare import prepare_once
from flashslm.infra.state_files import require_writable, write_whole
from flashslm.models.architecture import build_architecture
from flashslm.training.spec import NonFiniteLoss

ROOT = Path(__file__).parents[1]
SUBJECT = "learning-rates"
CUT_OFF = 3


class Point(NamedTuple):
    """One training of the sweep."""

    weight_norm: str  # on or off
    width: int
    rate: float


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    until_s = time.monotonic() + 60 * given.max_minutes
    with before_work(parser):
        opened = open_recipe(given.config, given.overrides)
        recipe = opened.recipe
        output = given.output or ROOT / "benchmarks" / "results" / f"{result_name(SUBJECT, opened.device)}.json"
        record = begin(require_writable(output), opened.facts, recipe, given.operators)
        for width in given.widths:  # ValueError where it does not fit
            build_architecture(given.operators, width, recipe.model, recipe.data.vocab_size)
        dataset = prepare_once(recipe.data, recipe.seed, given.directory)
    done = {Point(row["weight_norm"], row["width"], row["rate"]) for row in record["trainings"]}
    points = [Point(*values) for values in product(given.weight_norm, given.widths, sorted(given.rates))]
    missing = [point for point in points if point not in done]
    while missing and time.monotonic() <= until_s:
        point = missing.pop(0)
        record["trainings"].append(point._asdict() | trained(point, opened, given.operators, dataset))
        record["best"] = list(best_rates(record["trainings"], recipe.search.learning_rate))
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, json.dumps(record) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "trainings"}))
    return CUT_OFF if missing else 0


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--directory", type=NEW_DIRECTORY, required=True, help="where the prepared text is kept")
    parser.add_argument("--config", type=INPUT, default=ROOT / "configs" / "h200-proxy.yaml")
    parser.add_argument("--operators", type=OPERATORS, default="DFMF AFMF DFMF")
    parser.add_argument("--widths", type=COUNT, nargs="+", default=[256, 512, 1024])
    parser.add_argument("--rates", type=POSITIVE, nargs="+", default=[5e-4, 1e-3, 2e-3, 4e-3, 8e-3])
    parser.add_argument("--weight-norm", nargs="+", choices=["on", "off"], default=["off", "on"])
    parser.add_argument("--max-minutes", type=MINUTES, default=math.inf, help="no training begins later")
    parser.add_argument("--output", type=OUTPUT, help=f"default: benchmarks/results/{SUBJECT}_….json")
    parser.add_argument(
        "--set", dest="overrides", nargs="+", type=OVERRIDE, default=[], help="of the recipe, such as search.steps=50"
    )
    return parser


def begin(output: Path, facts: dict[str, Any], recipe: RunConfig, operators: str) -> dict[str, Any]:
    """The record of a file, to be continued, or a new one."""
    sections = {name: getattr(recipe, name).model_dump(mode="json") for name in ("data", "model", "search")}
    sections["training"] = {"weight_norm_axes": recipe.training.weight_norm_axes}
    work = {"operators": operators, "recipe": sections, "seed": recipe.seed}
    if not output.is_file():
        return {"subject": SUBJECT} | facts | work | {"trainings": [], "best": []}
    there = read_record(output)
    same = work | {"subject": SUBJECT, "device": facts["device"], "commit": facts["commit"]}
    if different := [name for name, value in same.items() if there.get(name) != value]:
        raise ValueError(f"'{output}' is the record of another sweep ({', '.join(different)}): give another --output")
    return there


def trained(point: Point, opened: OpenedRecipe, operators: str, dataset: Path) -> dict[str, Any]:
    """The losses of one training; null where it diverged."""
    vocab_size = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))["vocab_size"]
    architecture = build_architecture(operators, point.width, opened.recipe.model, vocab_size)
    section = opened.recipe.search.model_copy(update={"learning_rate": point.rate})
    try:
        _, outcome = train_shortly(architecture, opened, section, dataset, weight_norm=point.weight_norm == "on")
    except NonFiniteLoss as error:
        return {"validation_loss_nats": None, "error": str(error)}
    known = {"validation_loss_nats", "train_loss_nats", "train_time_s", "tokens_per_s", "tokens_seen"}
    return outcome.model_dump(include=known)


def best_rates(trainings: Sequence[dict[str, Any]], recipes_rate: float) -> Iterator[dict[str, Any]]:
    """For each variant and width that have a finite loss: see the top of the page."""
    for variant, width in dict.fromkeys((row["weight_norm"], row["width"]) for row in trainings):
        losses = {
            row["rate"]: row["validation_loss_nats"]
            for row in sorted(trainings, key=lambda row: row["rate"])
            if (row["weight_norm"], row["width"]) == (variant, width) and row["validation_loss_nats"] is not None
        }
        if losses:
            best = min(losses, key=lambda rate: losses[rate])
            excess = losses[recipes_rate] - losses[best] if recipes_rate in losses else None
            facts = {"weight_norm": variant, "width": width, "best_rate": best, "best_loss_nats": losses[best]}
            yield facts | {"optimum_rate": optimum(losses), "excess_nats_at_the_recipes_rate": excess}


def optimum(losses_nats: dict[float, float]) -> float | None:
    """The lowest point of the parabola through the best rate and its neighbours; None where it lacks one."""
    rates = sorted(losses_nats)
    place = min(range(len(rates)), key=lambda index: losses_nats[rates[index]])
    if place in (0, len(rates) - 1):
        return None
    (x0, y0), (x1, y1), (x2, y2) = ((math.log(r), losses_nats[r]) for r in rates[place - 1 : place + 2])
    left, right = (y1 - y0) / (x1 - x0), (y2 - y1) / (x2 - x1)
    curvature = (right - left) / (x2 - x0)
    return math.exp((x0 + x1) / 2 - left / (2 * curvature)) if curvature > 0 else rates[place]


if __name__ == "__main__":
    sys.exit(main())

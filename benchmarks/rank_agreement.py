"""How do short trainings rank designs for a long one, and does it help to count on how fast their loss still falls?

    .venv/bin/python benchmarks/rank_agreement.py --long RECORD --short RECORD [RECORD ...] [--slopes 0 0.25 0.5 1]
        [--output FILE]

The records are those of `flashslm experiment` over designs of the same names, such as search-proxies at several batch
sizes. A design's score after T steps of a short training is its validation loss there less the slope times what it lost
since T/2 (with `training.validate_every_steps` a training has several T): the learning curve continued by a line over
the logarithm of the steps. Printed and written: Spearman's correlation of that score with the test loss after the
longest budget of --long, with its bootstrap interval, over the designs that both records have.
"""

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flashslm.benchmarking.options import INPUT, NOT_NEGATIVE, OUTPUT, before_work, script_parser
from flashslm.benchmarking.record import command, read_record, write_record
from flashslm.statistics import FEW_RANKED, rank_correlation

SUBJECT = "rank-agreement"
SLOPES = (0.0, 0.25, 0.5, 0.75, 1.0)
SHARED = ("device", "fingerprint", "versions", "date")
Record = Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    with before_work(parser):
        if len({path.name for path in options.short}) < len(options.short):
            raise ValueError("--short: the records need different file names, which name the rows")
        long = read_record(options.long, "cells")
        shorts = {path.name: read_record(path, "cells") for path in options.short}
    truth = long_losses(long)
    rows = [
        {"short": name, **row} for name, short in shorts.items() for row in agreements(short, truth, options.slopes)
    ]
    for row in rows:
        interval = f"{row['low']:.3f} to {row['high']:.3f}"
        print(f"{row['short']}: {row['steps']} steps, slope {row['slope']:g}: {row['value']:.3f} ({interval})")
    if not rows:
        print(f"fewer than {FEW_RANKED} designs are in --long and in a short record", file=sys.stderr)
        return 2
    commits = "; ".join(dict.fromkeys(str(record["commit"]) for record in (long, *shorts.values())))
    facts = {name: long[name] for name in SHARED} | {"commit": commits, "command": command()}
    record = {"subject": SUBJECT, **facts, "long": options.long.name, "rankings": rows}
    if options.output:
        write_record(options.output, record)
    return 0


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--long", type=INPUT, required=True)
    parser.add_argument("--short", type=INPUT, nargs="+", required=True)
    parser.add_argument("--slopes", type=NOT_NEGATIVE, nargs="+", default=SLOPES)
    parser.add_argument("--output", type=OUTPUT)
    return parser


def long_losses(record: Record) -> dict[str, float]:
    """Test loss in nats by design, the mean over seeds, after the record's longest budget."""
    longest = max(cell["steps"] for cell in record["cells"])
    cells = [cell for cell in record["cells"] if cell["steps"] == longest and not cell["failed"]]
    return _means((cell["model"], cell["metrics"]["loss_nats"]) for cell in cells)


def agreements(short: Record, truth: Mapping[str, float], slopes: Sequence[float]) -> Iterator[dict[str, Any]]:
    """A row for each budget, each number of steps T with a validation at T/2 as well, and each slope."""
    cells = [cell for cell in short["cells"] if not cell["failed"] and cell["model"] in truth]
    places = sorted({(c["steps"], int(step)) for c in cells for step in c["validation_losses_nats"]})
    for budget, steps in places:
        curves = [(c["model"], c["validation_losses_nats"]) for c in cells if c["steps"] == budget]
        has_half = all(str(steps // 2) in curve for _, curve in curves)
        for slope in slopes if has_half else (0.0,):
            scores = _means((model, _score(curve, steps, slope)) for model, curve in curves if str(steps) in curve)
            if len(scores) >= FEW_RANKED:
                found = rank_correlation(list(scores.values()), [truth[model] for model in scores])
                yield {"budget": budget, "steps": steps, "slope": slope, **found._asdict()}


def _score(curve: Mapping[str, float], steps: int, slope: float) -> float:
    now = curve[str(steps)]
    return now - slope * (curve[str(steps // 2)] - now) if slope else now


def _means(values: Iterator[tuple[str, float]]) -> dict[str, float]:
    by_model: dict[str, list[float]] = defaultdict(list)
    for model, value in values:
        by_model[model].append(value)
    return {model: statistics.fmean(found) for model, found in by_model.items()}


if __name__ == "__main__":
    sys.exit(main())

"""A made-up latency table, proposers over it, and a deterministic stand-in for proxy training."""

from collections.abc import Callable
from typing import Any

from flashslm.config import LatencyConfig, ModelConfig, OperatorSizes, SearchConfig
from flashslm.hardware import DeviceFingerprint
from flashslm.models.architecture import build_architecture
from flashslm.models.operator_spec import OPERATOR_SPECS, SIZE_FIELDS
from flashslm.profiling.latency_table import LatencyEntry, LatencyTable
from flashslm.search.evolution import Proposer
from flashslm.search.fit import WidthFitter
from flashslm.search.space import parse_design
from flashslm.search.trial import Candidate, FinishedTrial

WIDTHS = (64, 128, 192, 256)
BUDGET_MS = 60.0
TARGET = parse_design("(DFMF AFMF)x2 | (DFMF)x2").operators


def make_table() -> LatencyTable:
    """At width 64: D 1.0, M 1.5, A 0.75 (1.5 at context 1024), F 0.5, head 2.0 ms; proportional to the width."""
    cost = {"D": 1.0, "M": 1.5, "A": 0.75, "F": 0.5, "head": 2.0}
    entries = [
        LatencyEntry.model_validate(
            {
                "operator": o,
                "width": w,
                "context": c,
                "batch": 1,
                "median_ms": ms,
                "p10_ms": 0.9 * ms,
                "p90_ms": 1.1 * ms,
            }
        )
        for o, unit in cost.items()
        for w in WIDTHS
        for c in (0, 1024)
        for ms in [unit * w / 64 * (1 + c / 1024 if o == "A" else 1)]
    ]
    return LatencyTable(
        device=DeviceFingerprint(kind="cpu", cpu="x", cores=1, gpu="", driver="", torch="2", cuda=""),
        dtype="float32",
        threads=1,
        warmup=1,
        repeats=3,
        sizes=ModelConfig(),
        vocab_size=512,
        entries=tuple(entries),
    )


def make_sized_table(values: OperatorSizes) -> LatencyTable:
    """`make_table` with entries of these sizes, which take as much longer as the size is larger."""
    table = make_table()
    further = {}
    for entry in table.entries:
        name = OPERATOR_SPECS[entry.operator].sized_by if entry.operator in OPERATOR_SPECS else ""
        for value in getattr(values, name) if name else ():
            own, other = (
                getattr(build_architecture("F", entry.width, sizes, 512), SIZE_FIELDS[name])
                for sizes in (table.sizes, table.sizes.model_copy(update={name: value}))
            )
            if own != other:
                times = {"median_ms": entry.median_ms * other / own, "size": other}
                further[*entry.key, other] = entry.model_copy(update=times)
    return table.model_copy(update={"entries": (*table.entries, *further.values())})


def make_proposer(seed: int = 0, budget_ms: float = BUDGET_MS, **search: Any) -> Proposer:
    values = {"trials": 40, "population": 10, "sample": 4, "candidates_per_cycle": 5, "widths": WIDTHS}
    config = SearchConfig.model_validate(values | search)
    table = make_sized_table(config.sizes)
    fitter = WidthFitter(table, LatencyConfig(context=1024), budget_ms, WIDTHS, ModelConfig(), 512)
    return Proposer(config, fitter, seed)


def loss_nats(operators: str) -> float:
    """Falls with agreement, position by position, with the paper's latency winner."""
    agreement = sum(a == b for a, b in zip(operators, TARGET, strict=False))
    return 4.0 - agreement / len(TARGET) + 0.02 * abs(len(operators) - len(TARGET))


def finish(candidate: Candidate, loss: float) -> FinishedTrial:
    return FinishedTrial(loss_nats=loss, **candidate.attributes())


def run_serially(proposer: Proposer, loss: Callable[[str], float] = loss_nats) -> list[FinishedTrial]:
    """The whole search without a study."""
    history: list[FinishedTrial] = []
    while waiting := proposer.propose(history)[len(history) :]:
        history += [finish(c, loss(c.operators)) for c in waiting]
    return history

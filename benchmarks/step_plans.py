"""Time the decode step under every plan: which form its products take, and how attention's keys are shared.

    python benchmarks/step_plans.py [--presets qwen3-0.6b] [--batches 8 16 32 64] [--budget-s 200] [--output FILE]

For each shape and batch the usual plan comes first, then other programs of attention and other forms of the products,
each with the rest as usual, and last the fastest of both together. Every time is printed at once, the winners in a
table at the end; a plan faster than the usual one belongs into `step_plan.USUAL_PLANS`. Writes
benchmarks/results/step-plans_<device>_<date>.json as it goes.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from flashslm.benchmarking.options import COUNT, OUTPUT, POSITIVE, before_work, require_gpu, script_parser
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.inference.decode_graph import DecodeGraph
from flashslm.inference.fused.step_plan import MOST_VECTORS, AttentionPlan, ProductTile, StepPlan, usual_plan
from flashslm.inference.sampling import GREEDY, Sampler
from flashslm.infra.state_files import require_writable
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.models.presets import PRESETS
from flashslm.models.random_weights import random_model

RESULTS = Path(__file__).parent / "results"
SHAPES = ("qwen3-0.6b", "nemotron-flash-1b")
BATCHES = (8, 16, 32, 64, 4, 2, 1)  # where most is to be gained first: a budget may end
CONTEXT = 8192
SETS, STEPS = 5, 16  # replays: the median of the sets counts
ATTENTIONS = {
    "waves of 396": AttentionPlan(programs=396, whole_waves=True),
    "768 programs": AttentionPlan(programs=768),
    "1584 programs": AttentionPlan(programs=1584),
    "2 stages, waves of 528": AttentionPlan(stages=2, programs=528, whole_waves=True),
    "2 stages, 2 warps, waves of 792": AttentionPlan(stages=2, warps=2, programs=792, whole_waves=True),
    "32 keys, 5 stages, waves of 396": AttentionPlan(keys=32, stages=5, programs=396, whole_waves=True),
}
TILES = {
    "16 x 128": ProductTile(16, 128, stages=5),
    "32 x 128": ProductTile(32, 128),
    "64 x 64": ProductTile(64, 64),
    "64 x 128, 8 warps": ProductTile(64, 128, stages=3, warps=8),
}


@dataclass
class Session:
    """One shape with a cache for the largest batch, and the times so far."""

    name: str
    model: HybridLM
    cache: Cache
    started: float
    budget_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def best(self, batch: int, plans: dict[str, StepPlan]) -> StepPlan | None:
        """Time these plans; the fastest of those that ran, None if none did."""
        times = {name: ms for name, plan in plans.items() if (ms := self.time(batch, name, plan)) is not None}
        return plans[min(times, key=lambda name: times[name])] if times else None

    def time(self, batch: int, name: str, plan: StepPlan) -> float | None:
        """Milliseconds per step; None, and a row that says why, for a plan that cannot run or came too late."""
        row: dict[str, Any] = {"preset": self.name, "batch": batch, "name": name, "plan": as_json(plan)}
        row |= {"splits": self.splits(batch, plan)}
        if time.monotonic() - self.started > self.budget_s:
            row["left_out"] = "the budget has ended"
        else:
            try:
                row["ms"] = step_ms(self.model, self.cache.first(batch), plan)
            except Exception as error:  # one plan's failure does not cost the others
                row["failed"] = f"{type(error).__name__}: {error}"[:300]
        self.rows.append(row)
        result = f"{row['ms']:.4f} ms" if "ms" in row else row.get("failed") or "left out"
        elapsed_s = time.monotonic() - self.started
        print(f"{self.name} batch {batch}: {name}, {row['splits']} splits: {result}; {elapsed_s:.0f} s", flush=True)
        return row.get("ms")

    def splits(self, batch: int, plan: StepPlan) -> int:
        groups, head = self.model.architecture.num_kv_heads, self.model.architecture.head_dim
        return plan.attention.splits(batch * groups, self.cache.slots, 4 * head)

    def run(self, batch: int) -> Iterator[None]:
        """Everything at one batch; yields where the record may be written."""
        usual = usual_plan(batch)
        self.time(batch, "usual", usual)
        yield
        attention = self.best(batch, {name: usual._replace(attention=plan) for name, plan in ATTENTIONS.items()})
        yield
        forms = {form: usual._replace(product=form) for form in ("vector", "tiled", "matrix") if form != usual.product}
        if batch > MOST_VECTORS:
            forms.pop("vector", None)
        tiles = {f"tiled {name}": StepPlan("tiled", usual.attention, tile) for name, tile in TILES.items()}
        product = self.best(batch, forms | tiles)
        yield
        if product and attention:
            self.time(batch, "fastest of both", product._replace(attention=attention.attention))
        yield


def as_json(plan: StepPlan) -> dict[str, Any]:
    return {
        "product": plan.product,
        "attention": plan.attention._asdict(),
        "tile": plan.tile._asdict() if plan.tile else None,
    }


def step_ms(model: HybridLM, cache: Cache, plan: StepPlan) -> float:
    """The median time of a captured step at CONTEXT tokens and the few after them."""
    device = model.embedding.weight.device
    tokens_B = torch.zeros(len(cache.lengths_B), dtype=torch.int64, device=device)
    graph = DecodeGraph(model, cache, tokens_B, Sampler(GREEDY, device), plan=plan)
    if graph.backend != "fused":
        raise RuntimeError(f"the decode step's backend is {graph.backend}: plans are of fused steps")
    times = []
    for turn in range(SETS + 1):  # the first warms up
        cache.lengths_B.fill_(cache.slots - STEPS)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(STEPS):
            graph.advance()
        end.record()
        end.synchronize()
        if turn:
            times.append(start.elapsed_time(end) / STEPS)
    return median(times)


def build(name: str, batch: int, started: float, budget_s: float) -> Session:
    """A shape with random weights and a random cache; its meta tokens count as text."""
    a = PRESETS[name]
    model = random_model(a.model_copy(update={"num_meta_tokens": 0}), "cuda", torch.bfloat16)
    cache = Cache.allocate(model.architecture, batch, a.num_meta_tokens + CONTEXT + STEPS, "cuda", torch.bfloat16)
    for tensor in (tensor for state in cache.layers for tensor in state):
        tensor.normal_()
    return Session(name, model, cache, started, budget_s)


def winners(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Per shape and batch the usual plan's time, the fastest one's, and the ratio of the two."""
    yield f"{'shape':20}{'batch':>6}{'usual ms':>10}{'best ms':>10}{'ratio':>7}  plan"
    timed = [row for row in rows if "ms" in row]
    for preset, batch in sorted({(row["preset"], row["batch"]) for row in timed}):
        here = [row for row in timed if (row["preset"], row["batch"]) == (preset, batch)]
        best = min(here, key=lambda row: row["ms"])
        usual = next((row["ms"] for row in here if row["name"] == "usual"), float("nan"))
        plan = json.dumps(best["plan"])
        yield f"{preset:20}{batch:6}{usual:10.4f}{best['ms']:10.4f}{usual / best['ms']:7.3f}  {best['name']}: {plan}"


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--presets", nargs="+", choices=sorted(PRESETS), default=list(SHAPES))
    parser.add_argument("--batches", nargs="+", type=COUNT, default=list(BATCHES))
    parser.add_argument("--budget-s", type=POSITIVE, default=600, help="shared by the presets")
    parser.add_argument("--output", type=OUTPUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    given = parser.parse_args(arguments)
    with before_work(parser):
        require_gpu()
        output = require_writable(given.output or RESULTS / f"{result_name('step-plans', 'cuda')}.json")
    facts = {"subject": "step-plans", **record_facts("cuda"), "context": CONTEXT, "repeats": SETS * STEPS}
    rows: list[dict[str, Any]] = []
    started = time.monotonic()
    for number, name in enumerate(given.presets, start=1):
        session = build(name, max(given.batches), started, given.budget_s * number / len(given.presets))
        for batch in given.batches:
            for _ in session.run(batch):
                write_record(output, facts | {"steps": rows + session.rows})
        rows += session.rows
        del session
        torch.cuda.empty_cache()
    print("\n".join(winners(rows)))


if __name__ == "__main__":
    main()

"""Take an operator through the project: python journey.py RECIPE LETTER DIRECTORY.

Run by test_new_operator with the copy of the package that has the operator.
"""

import math
import sys
from pathlib import Path
from typing import Any

import torch

from flashslm.config.file import load
from flashslm.export.names import exported_names
from flashslm.inference.engine import DecodeEngine
from flashslm.models.accounting import operator_parameters, parameters, state_bytes
from flashslm.models.architecture import build_architecture
from flashslm.models.describe import Device, describe
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import OPERATOR_SPECS
from flashslm.profiling.depth_width import measure_depth_width
from flashslm.profiling.measure import measure_latency_table
from flashslm.profiling.plan import ProfilingPlan
from flashslm.reporting.html import RunArtifacts, render
from flashslm.reporting.plots import figures
from flashslm.search.evolution import Proposer
from flashslm.search.fit import WidthFitter
from flashslm.search.result import search_result
from flashslm.search.study import SearchStudy
from flashslm.search.worker import run_worker
from flashslm.steps.recipe_checks import problems
from flashslm.training.ablation import VariantRun, compare
from flashslm.training.proxy import proxy_training
from flashslm.training.spec import FromArchitecture, TrainSpec
from flashslm.training.trainer import train
from tests.unit.training import tiny

torch.manual_seed(0)
RECIPE, LETTER, DIRECTORY = sys.argv[1], sys.argv[2], Path(sys.argv[3])
LABEL, VOCABULARY, BUDGET_MS = OPERATOR_SPECS[LETTER].label, tiny.VOCAB, 1e9
SEARCH = ["trials=6", "candidates_per_cycle=3", "population=3", "steps=4", f"seed_designs=['{LETTER}F', 'A{LETTER}F']"]
CHANGES = [*(f"search.{change}" for change in SEARCH), "profiling.repeats=3", f"profiling.sweep_block={LETTER}F"]
dataset = tiny.write_dataset(DIRECTORY / "data")


def trained(architecture: Any, training: Any, *, weight_norm: bool) -> tuple[HybridLM, Any]:
    spec = TrainSpec(
        start=FromArchitecture(architecture=architecture),
        dataset=tiny.manifest(),
        training=training,
        weight_norm=weight_norm,
        seed=0,
    )
    model = HybridLM.build(architecture)
    return model, train(spec, model, tiny.fetching(dataset))


# The recipe: what the search uses is measured without being listed.
config = load(RECIPE, CHANGES, checks=problems)
assert LETTER in config.profiling.operators

# The latency table, and a sweep of whole models.
plan = ProfilingPlan(config.profiling, config.model, VOCABULARY)
table = measure_latency_table(plan)
entries = [entry for entry in table.entries if entry.operator == LETTER]
assert {entry.width for entry in entries} == set(config.profiling.widths)
assert {entry.context for entry in entries} == set(config.profiling.contexts), "one measurement stands for each context"
sweep = measure_depth_width(plan)
assert sweep.points

# The search, with proxies that train.
fitter = WidthFitter(table, config.latency, BUDGET_MS, config.search.widths, config.model, VOCABULARY)
study = SearchStudy.open(f"sqlite:///{DIRECTORY}/study.db", "search")
proxy = proxy_training(config.search, 1, decay=True)
run_worker(
    study,
    Proposer(config.search, fitter, seed=0),
    lambda candidate: trained(candidate.architecture, proxy, weight_norm=False)[1],
)
found = search_result(study.finished(), BUDGET_MS)
bred = [trial for trial in found.history if trial["mutation"] != "seed" and LETTER in trial["operators"]]
assert len(found.history) == 6 and bred, "the operator is in designs that the search made"
assert all(math.isfinite(trial["loss_nats"]) for trial in found.history)

# Training, with weight normalisation.
architecture = build_architecture(f"{LETTER}FA{LETTER}F", config.search.widths[0], config.model, VOCABULARY)
model, outcome = trained(architecture, tiny.config(steps=30), weight_norm=True)
assert outcome.validation_loss_nats < math.log(VOCABULARY) - 0.2, "it learns"
assert abs(outcome.history[-1]["weight_norm"] - 1) < 1e-5
assert sum(p.numel() for p in model.parameters()) == parameters(architecture)["total"]
assert operator_parameters(architecture, LETTER) == sum(p.numel() for p in model.layers[0].parameters())

# Decoding: the engine's steps are the forward pass, and packed documents are separate ones.
tokens_BT = torch.randint(VOCABULARY, (4, 17))
engine = DecodeEngine(model.eval(), 4, 32)
with torch.no_grad():
    expected_BTV = model.logits(model(tokens_BT))
    engine.prefill(tokens_BT[:, :5])
    states = engine.cache.layers[0]
    assert sum(t[0].numel() for t in states) * 4 == state_bytes(architecture.model_copy(update={"operators": LETTER}))
    for position in range(5, tokens_BT.shape[1]):
        logits_BV = model.decode_step(tokens_BT[:, position], engine.cache)
        torch.testing.assert_close(logits_BV, expected_BTV[:, position], rtol=1e-4, atol=1e-4)
    documents_1T = torch.arange(4).repeat_interleave(17)[None]
    packed_BTV = model.logits(model(tokens_BT.reshape(1, -1), documents_1T)).reshape(expected_BTV.shape)
    torch.testing.assert_close(packed_BTV, expected_BTV, rtol=1e-4, atol=1e-4)

# Export names, the description.
assert exported_names(architecture).keys() == {name for name, _ in model.named_parameters()}
assert describe(architecture, 64, 1, Device("CPU", None), []).parameters[OPERATOR_SPECS[LETTER].name]

# The report; what other operators decide as well (law, evaluation, export, verdict) is filled in.
point = {"depth": 2, "width": 64, "tokens": 100, "loss_nats": 3.0, "fitted_nats": 3.0}
point |= {"fitted_interval_nats": [2.9, 3.1]}
choice: dict[str, Any] = {"depth": 2, "width": 64, "predicted_loss_nats": 3.0, "extrapolated": []}
candidate = choice | {"latency_ms": BUDGET_MS, "loss_interval_nats": [2.9, 3.1], "feasible": True}
needle = {"length": 48, "samples": 4, "chance": 0.1, "accuracy": 0.5, "ranked_first": 0.5}
run = RunArtifacts(
    name="journey",
    data={"source": "random"},
    latency_table=table.model_dump(mode="json"),
    latency_check=dict.fromkeys(("median_relative", "worst_relative", "summed_median_relative", "drift_relative"), 0.0)
    | {"models": []},
    depth_width=sweep.model_dump(mode="json"),
    scaling={
        "points": [point],
        "holdout": [point],
        "budget_ms": BUDGET_MS,
        "choice": choice | {"candidates": [candidate]},
        "within_scatter": [],
        "other_budgets": [],
        "holdout_perplexity_error": 0.0,
        "left_out_sizes": [],
        "law": {"constants": {}, "unidentified": [], "residual_std_nats": 0.1},
        "constant_intervals": {},
    },
    architecture=architecture.model_dump(mode="json"),
    operator_ms=table.operator_ms(architecture, config.latency.context, 1),
    history=found.history,
    pareto=found.pareto,
    winners=[{"operators": "AF", "width": 64, "predicted_ms": 1.0, "measured_ms": 1.0, "relative_error": 0.0}],
    best=found.best,
    ablation=compare(
        [
            VariantRun(
                weight_norm="on",
                seed=0,
                validation_loss_nats=outcome.validation_loss_nats,
                step_time_ms=1.0,
                history=outcome.history,
            )
        ]
    ).model_dump(mode="json"),
    step_time_ms={"on": 1.0},
    evaluation={
        "test/perplexity": math.exp(outcome.validation_loss_nats),
        "test/loss_nats": outcome.validation_loss_nats,
        "unigram_entropy_nats": math.log(VOCABULARY),
        "test/bits_per_byte": 1.0,
        "needle": [needle],
        "tasks": {},
    },
    export={
        "latency_ms": 1.0,
        "latency_p10_ms": 0.7,
        "latency_low_ms": 0.72,
        "latency_high_ms": 0.78,
        "latency_over_reference": 1.5,
        "latency_drift": 0.02,
        "latency_p90_ms": 1.1,
        "predicted_latency_ms": 1.0,
        "parameters": parameters(architecture)["total"],
        "parity_max_abs_difference": 0.0,
    },
    verdict={
        "decision": "hold",
        "checks": [],
        "candidate": {"perplexity": 3.0, "latency_ms": 1.0, "parameters": 1},
        "champion": None,
        "champion_version": "",
    },
    latency_context=config.latency.context,
    latency_batch=1,
    device_name=table.device.name,
    lineage=[],
)
drawn = figures(run)
for name in ("latency_by_width", "latency_by_context"):
    assert LABEL in {line.get_label() for line in drawn[name].axes[0].get_lines()}
page = render(run)
caption = page[page.index("Operators over the context") :].split("</figcaption>")[0]
assert LABEL in caption, "it does not depend on the context"
assert architecture.operators in page
print("the journey is done")

"""A small run's documents, as its steps leave them."""

from typing import Any

from flashslm.models.operator_spec import LM_HEAD
from flashslm.reporting.html import RunArtifacts
from flashslm.reporting.run_facts import Headline, RunFacts

OPERATORS = "DFMFF"
BUDGET_MS = 0.8


def entry(operator: str, width: int, context: int) -> dict[str, Any]:
    times = {"median_ms": 0.1 + width / 1000, "p10_ms": 0.1, "p90_ms": 0.4}
    return {"operator": operator, "width": width, "context": context, "batch": 1} | times


def trial(slot: int, latency_ms: float, loss_nats: float | None, mutation: str, parent: int | None) -> dict[str, Any]:
    design = {"operators": OPERATORS if slot == 2 else "AF" * (slot + 1), "width": 64, "notation": f"(AF)x{slot + 1}"}
    facts = {"slot": slot, "cycle": 0, "parameters": 100_000 + slot, "digest": "d", "mutation": mutation}
    return design | facts | {"parent": parent, "latency_ms": latency_ms, "loss_nats": loss_nats}


def point(depth: int, loss_nats: float) -> dict[str, Any]:
    fit = {"fitted_nats": loss_nats + 0.1, "fitted_interval_nats": [loss_nats, loss_nats + 0.2]}
    return {"depth": depth, "width": 64, "tokens": 1000 * depth, "loss_nats": loss_nats} | fit


def candidate(depth: int, latency_ms: float) -> dict[str, Any]:
    facts = {"depth": depth, "width": 64, "latency_ms": latency_ms, "feasible": latency_ms <= BUDGET_MS}
    outside = ["depth"] if depth > 3 else []
    return facts | {"predicted_loss_nats": 5.0 - depth / 10, "loss_interval_nats": [4.5, 5.2], "extrapolated": outside}


def winner(operators: str, predicted_ms: float, measured_ms: float) -> dict[str, Any]:
    times = {"predicted_ms": predicted_ms, "measured_ms": measured_ms}
    return {"operators": operators, "width": 64, **times, "relative_error": predicted_ms / measured_ms - 1}


def curves(start: float) -> dict[str, list[list[float]]]:
    rows = [[step, start - step / 100] for step in (10, 20, 30)]
    return dict.fromkeys(("train/loss_nats", "validation/loss_nats", "weight_norm", "gradient_norm"), rows)


def variant(name: str, seeds: list[int], spread: float | None) -> dict[str, Any]:
    finals = {"final_weight_norm": 1.0, "final_gradient_norm": 0.5, "spread_nats": spread}
    return {"weight_norm": name, "seeds": seeds, "validation_loss_nats": 4.25} | finals


def needle(length: int) -> dict[str, Any]:
    shares = {"accuracy": 0.0, "ranked_first": 0.25, "chance": 0.0625, "samples": 16}
    return {"length": length} | shares | {"ranked_first_by_depth": [0.0, 0.5, 0.25, 0.25]}


def scaling() -> dict[str, Any]:
    return {
        "points": [point(2, 5.0), point(4, 4.8)],
        "holdout": [point(6, 4.7)],
        "budget_ms": BUDGET_MS,
        "choice": candidate(2, 0.7) | {"candidates": [candidate(2, 0.7), candidate(4, 1.3)]},
        "other_budgets": [
            {"budget_ms": BUDGET_MS / 2, "infeasible": "no candidate decodes a token within 0.4 ms"},
            candidate(4, 1.3) | {"budget_ms": 2 * BUDGET_MS},
        ],
        "holdout_perplexity_error": 0.014,
        "left_out_sizes": [
            {"axis": "depth", "size": 4, "is_extrapolation": True, "points": 3, "perplexity_error": 0.0623}
        ],
        "law": {"constants": {"L0": 1.8, "gamma": 0.4}, "unidentified": ["gamma"], "residual_std_nats": 0.25},
        "within_scatter": [],
        "constant_intervals": {"L0": [1.7, 1.9], "gamma": [0.02, 3.0]},
    }


def ablation() -> dict[str, Any]:
    return {
        "variants": [variant("on", [0, 1], 0.01), variant("off", [0, 1], 0.02)],
        "difference_nats": -0.3,
        "difference_interval_nats": [-0.5, -0.1],
        "differences_nats": {"0": -0.25, "1": -0.35},
        "curves": {f"{v}, seed {s}": curves(5 + s) for v in ("on", "off") for s in (0, 1)},
        "verdict": "weight_norm=on is better",
        "diverged": [{"weight_norm": "off", "seed": 2, "reason": "loss is not finite at step 7"}],
    }


def evaluation() -> dict[str, Any]:
    return {
        "test/perplexity": 70.0,
        "test/loss_nats": 4.25,
        "unigram_entropy_nats": 5.18,
        "test/bits_per_byte": 3.1,
        "needle": [needle(96), needle(48)],
        "tasks": {"arc": {"acc": 0.31, "acc_stderr": 0.02, "samples": 400.0}},
        "samples": [{"prompt": "def load(", "continuation": "path: <str>)"}] * 3,
    }


def export() -> dict[str, Any]:
    return {
        "latency_ms": 0.75,
        "latency_p10_ms": 0.7,
        "latency_low_ms": 0.72,
        "latency_high_ms": 0.78,
        "latency_over_reference": 1.5,
        "latency_drift": 0.02,
        "latency_p90_ms": 0.8,
        "predicted_latency_ms": 0.6,
        "parameters": 100_002,
        "parity_max_abs_difference": 1e-6,
    }


def artifacts(name: str = "small") -> RunArtifacts:
    history = [
        trial(0, 0.5, 4.9, "seed", None),
        trial(1, 0.6, 5.1, "random", None),
        trial(2, 0.7, 4.6, "operator", 0),
        trial(3, 0.9, None, "repeats", 1),
    ]
    table = {
        "entries": [entry(o, w, c) for o in ("D", "M", "A", "F", LM_HEAD) for w in (32, 64) for c in (32, 128)],
        "device": {"kind": "cpu", "cpu": "Some CPU", "gpu": "", "cores": 2, "torch": "2.13", "cuda": "", "driver": ""},
        "dtype": "float32",
        "threads": 1,
    }
    checked = {"operators": "DFAF", "width": 64, "context": 32, "measured_ms": 2.0, "predicted_ms": 1.9}
    errors = dict.fromkeys(("median_relative", "worst_relative", "summed_median_relative", "drift_relative"), 0.05)
    measured = {"perplexity": 70.0, "latency_ms": 0.75, "parameters": 100_002, "device": "b", "dataset_sha256": "c"}
    sweep = [{"depth": d, "budget_parameters": 120_000, "context": 32, "median_ms": d / 4, "width": 64} for d in (2, 4)]
    return RunArtifacts(
        name=name,
        data={"source": "some text", "documents": 95, "bytes_per_token": 1.938, "unigram_entropy_nats": 5.18},
        latency_table=table,
        latency_check=errors | {"models": [checked]},
        depth_width={"points": sweep},
        scaling=scaling(),
        architecture={"operators": OPERATORS, "hidden_size": 64, "num_meta_tokens": 4, "vocab_size": 512},
        operator_ms={"D": 0.2, "M": 0.15, "F": 0.05, LM_HEAD: 0.1},
        history=history,
        pareto=[history[0], history[2]],
        winners=[winner("DFMFF", 0.7, 0.68), winner("AF", 0.5, 0.53)],
        best=history[2],
        ablation=ablation(),
        step_time_ms={"on": 12.0, "off": 11.5},
        evaluation=evaluation(),
        export=export(),
        verdict={
            "decision": "promote",
            "checks": ["pass: perplexity 70, recipe's limit 400"],
            "candidate": measured,
            "champion": measured | {"perplexity": 80.0},
            "champion_version": "3",
        },
        latency_context=64,
        latency_batch=1,
        device_name="Some CPU (2 cores)",
        lineage=[{"name": "exported", "sha256": "ab" * 32, "bytes": 1234567, "uri": "s3://bucket/cas/ab"}],
    )


def run_facts() -> RunFacts:
    step = {"state": "SUCCESS", "cached": False, "duration_s": 4.2, "summary": "done & <well>", "log": "logs/a.log"}
    return RunFacts(
        run_id="20261127-093049-small",
        pipeline="design_and_train",
        started="2026-11-27 09:30:49 +0000",
        duration_s=287.0,
        commit="629b3a5aa0",
        load="1.25 in the minute before, 2 cores",
        differences={"training.steps": 200, "search.widths": [32, 64], "data.source": "files"},
        steps=[
            {"label": "pretrain weight_norm=on"} | step,
            {"label": "evaluate"} | step | {"cached": True, "log": ""},
            {"label": "register_model"} | step | {"state": "FAILURE", "duration_s": 3700.0},
        ],
        headline=Headline("failed", "Not promoted: MLflow <gone>"),
        links={"MLflow": "http://127.0.0.1:5000/#/runs/1", "recipe": "config.yaml"},
        commands=[("Run it again:", "flashslm run --config 'runs/x/config.yaml'")],
    )

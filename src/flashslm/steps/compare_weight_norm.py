"""compare_weight_norm: the ablation report, and the chosen checkpoint."""

import json
from pathlib import Path
from typing import Any

from flashslm.infra.storage.object_store import Manifest
from flashslm.steps.context import StepContext
from flashslm.training.ablation import DivergedRun, VariantRun, choose_deployed, compare, load_run, step_times
from flashslm.training.spec import VALIDATION_LOSS


def run(context: StepContext) -> dict[str, Any]:
    """Outputs `ablation` (ablation.json; times in its manifest) and `chosen` (the deployed run's checkpoint, the same
    object).
    """
    manifests = context.manifests("checkpoints")
    diverged = [DivergedRun.model_validate(m.metadata) for m in manifests if "reason" in m.metadata]
    manifests = [m for m in manifests if "reason" not in m.metadata]
    runs = [_read(context.fetch_manifest(manifest), manifest) for manifest in manifests]
    training = context.config.training
    deployed = choose_deployed(runs, training.deploy, training.deployed_seed, diverged)
    ablation = compare(runs, diverged)
    times = step_times(runs)
    facts = {"verdict": ablation.verdict} | times.model_dump()
    context.publish_json("ablation", {"ablation.json": ablation.model_dump(mode="json")}, facts)
    context.outputs["chosen"] = manifests[runs.index(deployed)]
    return {
        **{f"{VALIDATION_LOSS}_weight_norm_{v.weight_norm}": v.validation_loss_nats for v in ablation.variants},
        "difference_nats": ablation.difference_nats,
        "step_time_increase": times.step_time_increase,
        "chosen_weight_norm": deployed.weight_norm,
        "chosen_seed": str(deployed.seed),
        "summary": f"{ablation.verdict}; weight_norm={deployed.weight_norm}, seed {deployed.seed} is chosen",
    }


def _read(directory: Path, manifest: Manifest) -> VariantRun:
    lines = (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    training = json.loads((directory / "training.json").read_text(encoding="utf-8"))
    return load_run(training, [json.loads(line) for line in lines], manifest.metadata["step_time_ms"])

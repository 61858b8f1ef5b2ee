"""Print the losses of a recipe's training as JSON: python -m tests.unit.training.golden_losses RECIPE.

The trainer, the recipe's training section and sizes, a small model of every exportable operator and generated text,
with and without weight normalisation. Losses are hexadecimal: every bit is there.
"""

import json
import sys
import tempfile
from pathlib import Path

import torch

from flashslm.config.file import load
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.training.spec import TRAIN_LOSS, FromArchitecture
from flashslm.training.trainer import train
from tests.unit.training import tiny

STEPS = 40
OPERATORS = "DFMFAF"


def losses(recipe: Path, weight_norm: bool) -> list[str]:
    """The training loss of every logged step, then the validation loss, in nats per token."""
    config = load(recipe, [f"training.steps={STEPS}", "training.log_every_steps=1"])
    architecture = build_architecture(OPERATORS, min(config.search.widths), config.model, tiny.VOCAB)
    spec = tiny.spec(config.training, start=FromArchitecture(architecture=architecture), run_key="")
    spec = spec.model_copy(update={"weight_norm": weight_norm})
    with tempfile.TemporaryDirectory() as directory:
        dataset = tiny.write_dataset(Path(directory) / "dataset", tokens=20_000)
        outcome = train(spec, HybridLM.build(architecture, seed=spec.seed), tiny.fetching(dataset))
    logged = [float(row[TRAIN_LOSS]) for row in outcome.history if TRAIN_LOSS in row]
    return [value.hex() for value in (*logged, outcome.validation_loss_nats)]


if __name__ == "__main__":
    variants = {name: losses(Path(sys.argv[1]), name == "on") for name in ("on", "off")}
    print(json.dumps({"torch": torch.__version__.split("+")[0], "weight_norm": variants}))

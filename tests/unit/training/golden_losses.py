"""Print the losses of a recipe's training as JSON: python -m tests.unit.training.golden_losses RECIPE.

The trainer, the recipe's training section and sizes, a small model of every exportable operator and generated text,
with and without weight normalisation. Losses are hexadecimal: every bit is there. `arithmetic` is a digest of what
torch's functions give on this processor: where it is another one, so are the bits.
"""

import hashlib
import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

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


def exact_sqrt(x: Tensor) -> Tensor:
    """torch.sqrt on a CPU is MKL's: off by one unit in the last place, for other arguments on another maker's chip."""
    return torch.from_numpy(np.sqrt(x.detach().numpy()))


def arithmetic() -> str:
    """Digest of the functions that a training calls, at fixed arguments."""
    drawn = np.random.default_rng(0).standard_normal((96, 80), dtype=np.float32)
    x = torch.from_numpy(drawn)
    functions = (torch.exp, torch.sigmoid, torch.tanh, nn.functional.softplus, nn.functional.silu, Tensor.sqrt)
    results = [f(x.abs()) for f in functions] + [x @ x.T, x.T @ x, x.softmax(-1), x.square().sum(0), x.logsumexp(-1)]
    return hashlib.sha256(b"".join(result.numpy().tobytes() for result in results)).hexdigest()


if __name__ == "__main__":
    Tensor.sqrt = exact_sqrt  # type: ignore[method-assign]
    variants = {name: losses(Path(sys.argv[1]), name == "on") for name in ("on", "off")}
    found = {"torch": torch.__version__.split("+")[0], "arithmetic": arithmetic(), "weight_norm": variants}
    print(json.dumps(found))

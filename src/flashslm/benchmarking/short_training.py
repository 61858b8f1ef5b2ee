"""What benchmarks of a recipe's short trainings (its `search` section) begin with and run."""

from pathlib import Path
from typing import Any, NamedTuple

from flashslm.benchmarking.record import record_facts
from flashslm.config import RunConfig, SearchConfig
from flashslm.config.file import load
from flashslm.hardware import DeviceKind, pick_device
from flashslm.infra.storage.object_store import Manifest
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from flashslm.ops import kernels
from flashslm.training.new_model import new_model
from flashslm.training.proxy import proxy_training
from flashslm.training.spec import FromArchitecture, TrainOutcome, TrainSpec
from flashslm.training.trainer import train

_DATASET = Manifest(kind="dataset", uri="s3://none/prepared", sha256="0" * 64, bytes=1)  # the directory itself is read


class OpenedRecipe(NamedTuple):
    """A recipe, the device of its trainings, and the first facts of a record (`Provenance`, as JSON)."""

    recipe: RunConfig
    device: DeviceKind
    facts: dict[str, Any]


def open_recipe(file: Path, overrides: list[str]) -> OpenedRecipe:
    """Read a recipe and use its `kernels` from now on. Raises as `config.file.load`."""
    recipe = load(file, overrides)
    device = pick_device(recipe.profiling.training_device)
    kernels.configure(recipe.kernels)
    return OpenedRecipe(recipe, device, record_facts(device))


def train_shortly(
    architecture: Architecture, opened: OpenedRecipe, section: SearchConfig, dataset: Path, *, weight_norm: bool = False
) -> tuple[HybridLM, TrainOutcome]:
    """A model trained as `section` says on the prepared data set of a directory. Raises NonFiniteLoss.

    Weight normalisation covers what the recipe's training section says.
    """
    recipe = opened.recipe
    training = proxy_training(section, recipe.profiling.threads, decay=True)
    start = FromArchitecture(architecture=architecture, output_init=recipe.model.output_init)
    spec = TrainSpec(
        start=start,
        dataset=_DATASET,
        training=training.model_copy(update={"weight_norm_axes": recipe.training.weight_norm_axes}),
        weight_norm=weight_norm,
        seed=recipe.seed,
    )
    model = new_model(start, opened.device, recipe.seed, init_on_device=True)
    return model, train(spec, model, lambda _: dataset)

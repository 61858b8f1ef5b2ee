"""A cell: one model trained once, with a seed and a variant, and judged on the test split."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from flashslm.config import RunConfig, TrainingConfig, digest
from flashslm.config.experiment import ExperimentRecipe
from flashslm.experiments.matching import MatchedModel
from flashslm.hardware import pick_device
from flashslm.inference.int8_model import as_served
from flashslm.infra.checkout import commit
from flashslm.infra.settings import Settings
from flashslm.infra.state_files import write_whole
from flashslm.infra.storage.object_store import Manifest
from flashslm.infra.tracking.mlflow_runs import TrackedRun, open_run
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from flashslm.ops import kernels
from flashslm.steps.evaluate import evaluate_on_test_split, for_evaluation
from flashslm.training.new_model import new_model
from flashslm.training.shared_gpu import OutOfMemory, SharedGpu
from flashslm.training.spec import FromArchitecture, NonFiniteLoss, TrainSpec
from flashslm.training.trainer import train

MIN_WARMUP_SHARE = 10  # a budget shorter than the recipe's warms up for a tenth of its steps at most


class Cell(BaseModel):
    """What is trained; `model` is its name in the experiment."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str
    architecture: Architecture
    weight_norm: str  # "on" or "off"
    meta_tokens: int
    steps: int
    seed: int

    @property
    def label(self) -> str:
        variant = f"weight norm {self.weight_norm}, {self.meta_tokens} meta tokens"
        return f"{self.model}, {variant}, {self.steps} steps, seed {self.seed}"

    @property
    def variant(self) -> dict[str, Any]:
        return self.model_dump(exclude={"architecture"})


class CellResult(BaseModel):
    """`metrics` of the test split, and what the run was; `failed` says why there are none."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    cell: Cell
    metrics: dict[str, float]
    validation_losses_nats: dict[int, float] = {}  # by step
    facts: dict[str, float | int | str | None] = {}
    failed: str = ""


def plan_cells(recipe: ExperimentRecipe, models: Sequence[MatchedModel]) -> list[Cell]:
    """Every cell, seed by seed and the short budgets first: one that is cut short has whole seeds to compare."""
    experiment, training = recipe.experiment, recipe.training
    steps = sorted(experiment.steps) or [training.steps]
    numbers = experiment.meta_tokens or (recipe.model.num_meta_tokens,)
    order = product(training.seeds, steps, models, training.weight_norm, numbers)
    return [
        Cell(
            model=model.name,
            architecture=model.architecture.model_copy(update={"num_meta_tokens": meta_tokens}),
            weight_norm=weight_norm,
            meta_tokens=meta_tokens,
            steps=budget,
            seed=seed,
        )
        for seed, budget, model, weight_norm, meta_tokens in order
    ]


known_commit = cache(commit)  # asking git takes longer than a small cell


class CellRunner(BaseModel):
    """Trains cells of one experiment on one data set; picklable, so that worker processes can have it.

    A finished cell lies in `directory` under the digest of all that decides its numbers but the code, and is not
    trained again.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    recipe: ExperimentRecipe
    dataset: Manifest
    dataset_directory: Path
    directory: Path
    settings: Settings | None = None  # of MLflow; None: nothing is tracked

    def finished(self, cell: Cell) -> CellResult | None:
        """What an earlier run left of it, also of the same model under another name; the result has this cell's."""
        file = self._file(cell)
        if not file.is_file():
            return None
        found = CellResult.model_validate_json(file.read_text(encoding="utf-8"))
        return found.model_copy(update={"cell": cell})

    def run(self, cell: Cell) -> CellResult:
        """Train and judge, or read what was done before; without memory beside other cells, once more alone."""
        if done := self.finished(cell):
            return done
        kernels.configure(self.recipe.kernels)
        try:
            result = SharedGpu.of(self._device).run(partial(self._trained, cell))
        except (NonFiniteLoss, OutOfMemory) as error:
            result = CellResult(cell=cell, metrics={}, failed=str(error), facts={"commit": known_commit()})
        self.directory.mkdir(parents=True, exist_ok=True)
        write_whole(self._file(cell), result.model_dump_json(indent=1))
        return result

    def training(self, cell: Cell) -> TrainingConfig:
        """The recipe's training section for this cell's budget."""
        given, steps = self.recipe.training, cell.steps
        warmup = given.warmup_steps if steps >= given.steps else min(given.warmup_steps, steps // MIN_WARMUP_SHARE)
        changed = {"steps": steps, "warmup_steps": warmup, "weight_norm": (cell.weight_norm,), "seeds": (cell.seed,)}
        values = given.model_dump() | changed | {"deploy": "best", "deploy_seed": None}
        return TrainingConfig.model_validate(values)

    @property
    def _device(self) -> str:
        return pick_device(self.recipe.profiling.training_device)

    def _file(self, cell: Cell) -> Path:
        recipe = self.recipe.model_dump(mode="json", include={"kernels", "evaluation", "seed"})
        work = recipe | {
            "architecture": cell.architecture.model_dump(mode="json"),
            "training": self.training(cell).model_dump(mode="json"),
            "seed": cell.seed,
            "dataset": self.dataset.sha256,
            "device": self._device,
        }
        # What a model begins with, and what it is changed to before it is judged.
        further = {"model": {"output_init"}, "profiling": {"weights"}, "export": {"dtype"}}
        changed = self.recipe.model_dump(mode="json", include=further, exclude_defaults=True)
        work |= {name: values for name, values in changed.items() if values}
        return self.directory / f"{digest(work)[:24]}.json"

    def _tracked(self, cell: Cell, tracking: ExitStack) -> TrackedRun | None:
        if self.settings is None:
            return None
        settings = self.settings.model_copy(update={"experiment": self.recipe.name, "parent_run_id": ""})
        operators = {"operators": cell.architecture.operators, "width": cell.architecture.hidden_size}
        return tracking.enter_context(open_run(settings, cell.label, params=cell.variant | operators))

    def _trained(self, cell: Cell) -> CellResult:
        output_init = self.recipe.model.output_init
        start = FromArchitecture(architecture=cell.architecture, output_init=output_init)
        spec = TrainSpec(
            start=start,
            dataset=self.dataset,
            training=self.training(cell),
            weight_norm=cell.weight_norm == "on",
            seed=cell.seed,
        )
        with ExitStack() as tracking:
            tracked = self._tracked(cell, tracking)
            log = tracked.log_row if tracked else None
            model = new_model(start, self._device, cell.seed)
            outcome = train(spec, model, lambda _: self.dataset_directory, on_metrics=log)
            metrics = test_metrics(model, self.dataset_directory, self.recipe)
            if tracked:
                tracked.log_metrics(metrics, cell.steps)
        facts = outcome.measured() | {"tokens_seen": outcome.tokens_seen, "commit": known_commit()}
        losses = outcome.validation_losses_nats()
        return CellResult(cell=cell, metrics=metrics, validation_losses_nats=losses, facts=facts)


def test_metrics(model: HybridLM, dataset: Path, recipe: RunConfig) -> dict[str, float]:
    """The numbers of the test split: perplexity and bits per byte, and shares of needles and facts by length."""
    served = as_served(for_evaluation(model, recipe), recipe.profiling.weights)
    results = evaluate_on_test_split(served, dataset, recipe).results
    return dict(_headline(results))


def _headline(results: dict[str, Any]) -> Iterator[tuple[str, float]]:
    for name in ("perplexity", "loss_nats", "bits_per_byte"):
        yield name, results[f"test/{name}"]
    for needle in results["needle"]:
        yield f"needle_{needle['length']}", needle["ranked_first"]
        yield f"needle_margin_nats_{needle['length']}", needle["margin_nats"]
    for found in results["recall"]:
        yield f"recall_{found['task']}_{found['length']}", found["accuracy"]

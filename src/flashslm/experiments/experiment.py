"""Run an experiment: text, models, every cell, and after each of them the record of what is known so far."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from flashslm.benchmarking.record import record_facts
from flashslm.config import digest
from flashslm.config.experiment import ExperimentRecipe
from flashslm.data.prepare import prepare_once
from flashslm.data.summary import DATASET_FILE
from flashslm.experiments.cells import Cell, CellResult, CellRunner, plan_cells
from flashslm.experiments.contrasts import differences, grouped, means, rankings
from flashslm.experiments.matching import MatchedModel, match_models
from flashslm.experiments.table import markdown
from flashslm.hardware import pick_device
from flashslm.infra.process.interrupts import keeping
from flashslm.infra.settings import Settings
from flashslm.infra.state_files import write_whole
from flashslm.infra.storage.object_store import Manifest, hash_tree, tree_digest
from flashslm.ops import kernels
from flashslm.training.side_by_side import side_by_side

RECORD_FILE, TABLE_FILE = "record.json", "table.md"
# Of a recipe; budgets, meta tokens, initial values, the baseline and the question change no model's size.
_DECIDES_SIZES: dict[str, Any] = dict.fromkeys(("model", "kernels", "profiling", "latency"), True) | {
    "experiment": {"models", "match", "width", "parameters", "measure_latency"}
}
Say = Callable[[str], None]


@dataclass(frozen=True)
class Experiment:
    """An experiment and the directory that holds its data set, its finished cells and its record.

    With several `workers`, processes train cells side by side; what one finished is never trained again.
    """

    recipe: ExperimentRecipe
    directory: Path
    workers: int = 1
    settings: Settings | None = None  # of MLflow; None: nothing is tracked
    say: Say = print

    def run(self, dataset: Path | None = None) -> dict[str, Any]:
        """Train what is not yet trained; returns the record. `dataset`: one that is prepared already."""
        kernels.configure(self.recipe.kernels)
        self.directory.mkdir(parents=True, exist_ok=True)
        prepared = dataset or prepare_once(self.recipe.data, self.recipe.seed, self.directory, self.say)
        manifest = manifest_of(prepared)
        models = self.models(manifest)
        runner = CellRunner(
            recipe=self.recipe,
            dataset=manifest,
            dataset_directory=prepared.absolute(),
            directory=(self.directory / "cells").absolute(),
            settings=self.settings,
        )
        cells = plan_cells(self.recipe, models)
        results: dict[str, CellResult] = {}
        self._write(models, [], cells)
        with keeping(lambda: f"stopped after {len(results)} of {len(cells)} cells, which are kept"):
            for result in self._train(runner, cells):
                results[result.cell.label] = result
                self.say(f"{len(results)} of {len(cells)}: {result.cell.label}: {_outcome(result)}")
                self._write(models, [results[c.label] for c in cells if c.label in results], cells)
        return dict(json.loads((self.directory / RECORD_FILE).read_text(encoding="utf-8")))

    @cached_property
    def _provenance(self) -> dict[str, Any]:
        return record_facts(pick_device(self.recipe.profiling.training_device))

    def models(self, dataset: Manifest) -> list[MatchedModel]:
        """Matched and timed once: measured again, another size might be chosen, and every cell would be another."""
        recipe = self.recipe.model_dump(mode="json", include=_DECIDES_SIZES, exclude={"model": {"output_init"}})
        vocab_size = dataset.metadata["vocab_size"]
        work = digest(recipe | {"vocab_size": vocab_size, "device": pick_device(self.recipe.profiling.device)})
        file = self.directory / f"models-{work[:12]}.json"
        if file.is_file():
            return [MatchedModel.model_validate(model) for model in json.loads(file.read_text(encoding="utf-8"))]
        models = match_models(self.recipe, vocab_size)
        for model in models:
            timed = f", {model.measured_ms:.4g} ms per token" if model.measured_ms else ""
            size = f"width {model.architecture.hidden_size}, {model.parameters:,} parameters"
            self.say(f"{model.name}: {model.architecture.operators}, {size}{timed}")
        write_whole(file, json.dumps([model.model_dump(mode="json") for model in models], indent=1))
        return models

    def _train(self, runner: CellRunner, cells: Sequence[Cell]) -> Iterator[CellResult]:
        """Finished cells first, in their order; then the others as they end."""
        missing = []
        for cell in cells:
            if done := runner.finished(cell):
                yield done
            else:
                missing.append(cell)
        yield from side_by_side(runner.run, missing, self.workers)

    def _write(self, models: Sequence[MatchedModel], results: Sequence[CellResult], cells: Sequence[Cell]) -> None:
        groups = grouped(results)
        record = {
            "subject": self.recipe.name,
            **self._provenance,
            "recipe": self.recipe.model_dump(mode="json"),
            "cells_planned": len(cells),
            "models": [_described(model) for model in models],
            "cells": [_compact(result) for result in results],
            "means": means(groups),
            "differences": differences(groups, self.recipe.experiment.baseline),
            "rankings": rankings(groups),
        }
        write_whole(self.directory / RECORD_FILE, json.dumps(record, indent=1, sort_keys=False) + "\n")
        write_whole(self.directory / TABLE_FILE, markdown(record))


def manifest_of(dataset: Path) -> Manifest:
    """The identity of a prepared data set on this disk, which is in no store."""
    file = dataset / DATASET_FILE
    if not file.is_file():
        raise ValueError(f"'{dataset}' is not a prepared data set: it has no {DATASET_FILE}")
    sha256, facts = tree_digest(hash_tree(dataset)), json.loads(file.read_text(encoding="utf-8"))
    return Manifest(kind="dataset", uri=f"s3://none/{sha256}", sha256=sha256, bytes=0, metadata=facts)


def _described(model: MatchedModel) -> dict[str, Any]:
    """A model with the error of the table's time against the measured one."""
    shape = {"operators": model.architecture.operators, "width": model.architecture.hidden_size}
    facts = {"name": model.name} | shape | model.model_dump(exclude={"name", "architecture"})
    if model.predicted_ms and model.measured_ms:
        facts["prediction_error"] = model.predicted_over_measured - 1
    return facts


def _compact(result: CellResult) -> dict[str, Any]:
    return result.cell.variant | result.model_dump(mode="json", exclude={"cell"})


def _outcome(result: CellResult) -> str:
    return result.failed or f"perplexity {result.metrics['perplexity']:.2f}"

"""Experiments whose runs take a second on a CPU."""

from pathlib import Path
from typing import Any

from flashslm.config.experiment import ExperimentRecipe
from flashslm.experiments.cells import Cell, CellResult
from tests.unit.training import tiny

TEXT = {"max_bytes": 400_000, "vocab_size": 512, "tokenizer_bytes": 200_000, "test_fraction": 0.2}


def recipe(**sections: Any) -> ExperimentRecipe:
    """Of models AF and DF of width 16, two seeds of 4 steps; sections replace single values."""
    values: dict[str, dict[str, Any]] = {
        "data": TEXT,
        "model": tiny.SIZES.model_dump() | {"num_meta_tokens": 0, "max_position_embeddings": 256},
        "kernels": {"default": "torch"},
        "profiling": {"widths": [16], "contexts": [32], "repeats": 3, "warmup": 1},
        "latency": {"context": 32},
        "training": {
            **{"steps": 4, "batch_size": 2, "sequence_length": 32, "warmup_steps": 1, "validation_tokens": 128},
            **{"weight_norm": ["off"], "seeds": [0, 1]},
        },
        "evaluation": {"sequence_length": 32, "max_tokens": 500, "needle_lengths": [], "recall_tasks": []},
        "experiment": {
            **{"question": "Which is better?", "width": 16, "baseline": "attention", "measure_latency": False},
            "models": {"attention": {"operators": "AF"}, "deltanet": {"operators": "DF"}},
        },
    }
    merged = {name: values.get(name, {}) | sections.get(name, {}) for name in values.keys() | sections.keys()}
    return ExperimentRecipe.model_validate({"name": "tiny"} | merged)


def result(model: str, perplexity: float, seed: int = 0, **variant: Any) -> CellResult:
    given = {"weight_norm": "off", "meta_tokens": 0, "steps": 100} | variant
    cell = Cell(model=model, architecture=tiny.architecture("AF"), seed=seed, **given)
    return CellResult(cell=cell, metrics={"perplexity": perplexity, "recall_mqar_512": 1 / perplexity})


def write(directory: Path, of: ExperimentRecipe) -> Path:
    """The recipe as a file, for a command."""
    from flashslm.config.file import dump

    file = directory / f"{of.name}.yaml"
    file.write_text(dump(of), encoding="utf-8")
    return file

"""A directory of evaluation sets in place of the hub: SET_SPLIT.jsonl, or with .jsonl.zst, .jsonl.gz or .parquet.

SET is the last part of the hub's name with the configuration behind it, such as winogrande_xl of allenai/winogrande, or
the shorter name below. A split's rows have the columns that they have on the hub. Few-shot examples come from
SET_train, or SET_train_fewshot where only some of the training rows are kept.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SHORT_NAMES = {
    "allenai/ai2_arc/ARC-Challenge": "arc_challenge",
    "allenai/ai2_arc/ARC-Easy": "arc_easy",
    "allenai/winogrande/winogrande_xl": "winogrande_xl",
    "aps/super_glue/boolq": "boolq",
    "aps/super_glue/copa": "copa",
    "EleutherAI/wikitext_document_level/wikitext-2-raw-v1": "wikitext",
    "google-research-datasets/mbpp/full": "mbpp",
    "hazyresearch/based-fda": "fda",
    "hazyresearch/based-squad": "squad_completion",
    "hazyresearch/based-swde-v2": "swde",
    "lighteval/siqa": "social_iqa",
    "openai/openai_humaneval": "humaneval",
    "truthfulqa/truthful_qa/generation": "truthfulqa_gen",
    "truthfulqa/truthful_qa/multiple_choice": "truthfulqa_mc",
}
PARTS = {"cais/mmlu": "subject"}  # one file has all configurations; this column names them
SUFFIXES = (".jsonl", ".jsonl.zst", ".jsonl.gz", ".parquet")
DEFAULT_CONFIGURATIONS = (None, "", "default", "main")
LOADERS = ("json", "csv", "parquet", "text", "arrow")  # of `datasets`, for files that a task names itself


class TaskDataError(ValueError):
    """What is wrong with a directory of sets, in words for who has made it."""


class LocalSets:
    """Reads what `datasets.load_dataset` would fetch. Files are read when a split is asked for, once each."""

    def __init__(self, directory: str | Path):
        self.directory = Path(directory)
        self._rows: dict[Path, list[dict[str, Any]]] = {}

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Tasks that the harness loads meanwhile read this directory."""
        import datasets

        fetch = datasets.load_dataset

        def load_dataset(path: str, name: str | None = None, split: str | None = None, **options: Any) -> Any:
            if path in LOADERS or Path(path).exists():
                return fetch(path, name, split=split, **options)
            splits = LocalSplits(self, path, name)
            return splits[split] if split else splits

        datasets.load_dataset = load_dataset
        try:
            yield
        finally:
            datasets.load_dataset = fetch

    def rows(self, stem: str) -> list[dict[str, Any]] | None:
        """Of a file by its name without the ending; None where there is none."""
        file = next((f for suffix in SUFFIXES if (f := self.directory / f"{stem}{suffix}").is_file()), None)
        if file is None:
            return None
        if file not in self._rows:
            self._rows[file] = read_rows(file)
        return self._rows[file]


class LocalSplits(dict[str, Any]):
    """The splits of one set as `datasets.Dataset`. A training split without a file is empty: it only gives examples."""

    def __init__(self, sets: LocalSets, path: str, configuration: str | None):
        super().__init__()
        self._sets, self._column = sets, PARTS.get(path)
        self._configuration = configuration
        self._set = set_name(path, None if self._column else configuration)

    def __missing__(self, split: str) -> Any:
        from datasets import Dataset

        stems = [f"{self._set}_{split}"] + ([f"{self._set}_train_fewshot"] if split == "train" else [])
        rows = next((found for stem in stems if (found := self._sets.rows(stem)) is not None), None)
        if rows is None and split != "train":
            raise TaskDataError(
                f"'{self._sets.directory}' has no {stems[0]}.jsonl (nor {', '.join(SUFFIXES[1:])}): put the set's "
                f"'{split}' split there, one row per line with the hub's columns"
            )
        if self._column:
            rows = [row for row in rows or () if row.get(self._column) == self._configuration]
            if not rows and split != "train":
                raise TaskDataError(
                    f"{stems[0]} in '{self._sets.directory}' has no {self._column} {self._configuration}"
                )
        if not rows and split != "train":
            raise TaskDataError(f"{stems[0]} in '{self._sets.directory}' has no rows: fetch the set again")
        self[split] = Dataset.from_list(rows or [])
        return self[split]


def set_name(path: str, configuration: str | None) -> str:
    """SET of a data set on the hub and its configuration."""
    for key in (f"{path}/{configuration}", path):
        if key in SHORT_NAMES:
            return SHORT_NAMES[key]
    last = path.rstrip("/").rpartition("/")[2]
    return last if configuration in DEFAULT_CONFIGURATIONS else f"{last}_{configuration}"


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Raises TaskDataError with file and line for what is not rows."""
    import pyarrow
    from pyarrow import parquet

    place, rows = str(file), []
    try:
        if file.suffix == ".parquet":
            return list(parquet.read_table(file).to_pylist())
        with pyarrow.input_stream(str(file), compression="detect") as stream:
            lines = stream.read().decode("utf-8-sig").split("\n")
        for number, line in enumerate(lines, 1):
            if line.strip():
                place = f"{file}:{number}"
                rows.append(dict(json.loads(line)))
    except (OSError, ValueError, TypeError, pyarrow.ArrowException) as error:
        raise TaskDataError(f"'{place}' cannot be read as rows ({error}): fetch the set again") from error
    return rows

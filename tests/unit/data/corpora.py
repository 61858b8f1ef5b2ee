"""Small texts and data sets that tests of several rooms prepare."""

import json
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from flashslm.config import DataConfig
from flashslm.data.prepare import prepare_dataset
from flashslm.data.summary import DatasetSummary

WORDS = ("the", "cat", "dogs", "river", "stone", "sleeps", "under", "blue", "green", "seven", "quietly", "often")


def make_texts(count: int, seed: int = 0, words: int = 60) -> list[str]:
    """Distinct documents of random words."""
    rng = random.Random(seed)
    return [f"{seed}-{i} " + " ".join(rng.choices(WORDS, k=words)) for i in range(count)]


def in_turn(parts: Iterable[torch.Tensor]) -> torch.Tensor:
    """The rows of several ranks as those of one: each has every N-th."""
    return torch.stack(list(parts), dim=1).flatten(0, 1)


def write_jsonl(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in texts), encoding="utf-8")
    return path


def prepare(directory: Path, texts: list[str], **fields: Any) -> DatasetSummary:
    """Prepare `texts` with a small vocabulary; `fields` override the recipe's data section."""
    directory.mkdir(parents=True, exist_ok=True)
    path = write_jsonl(directory.parent / f"{directory.name}.jsonl", texts)
    recipe = {"validation_fraction": 0.2, "test_fraction": 0.2, "vocab_size": 300, "shard_tokens": 1024} | fields
    return prepare_dataset(DataConfig(source="files", paths=(str(path),), **recipe), 0, directory)

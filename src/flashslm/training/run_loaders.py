"""The loaders of a training run: its data set alone, with replayed old data, or a mixture of data sets."""

from pathlib import Path

from flashslm.config import BatchShape
from flashslm.config.mixture import MixtureSource
from flashslm.data.files import Files, content_of, files_of
from flashslm.data.loader import TokenLoader
from flashslm.data.mixture import MixtureLoader
from flashslm.data.replay import ReplayLoader
from flashslm.infra.storage.object_store import Manifest
from flashslm.training.distributed import World
from flashslm.training.spec import OpenDataset, TrainSpec
from flashslm.training.staged_loader import StagedLoader, TrainLoader

_TOKENIZER = "tokenizer/tokenizer.json"


def run_loaders(spec: TrainSpec, open_dataset: OpenDataset, world: World) -> tuple[StagedLoader, TokenLoader]:
    """This rank's training rows, in micro-batches, and validation rows.

    Raises ValueError where a split is too short or a mixture's tokenizers differ.
    """
    dataset = open_dataset(spec.dataset)
    old = open_dataset(spec.replay.dataset) if spec.replay else None
    mixed = [_mixed(source, dataset, open_dataset) for source in spec.training.mixture]

    def train_rows(shape: BatchShape, seed: int) -> TrainLoader:
        def rows(data: Path | Files) -> TokenLoader:
            sizes = (shape.sequence_length, shape.micro_batch_size, seed, world.rank, world.size)
            return TokenLoader(data, "train", *sizes)

        if mixed:
            weights = [source.weight for source in spec.training.mixture]
            names = [source.name for source in spec.training.mixture]
            return MixtureLoader({n: rows(d) for n, d in zip(names, mixed, strict=True)}, weights)
        if old is None or spec.replay is None or not spec.replay.fraction:
            return rows(dataset)
        return ReplayLoader(rows(dataset), rows(old), spec.replay.fraction)

    first = spec.training.batch_shapes[0]
    sizes = (first.sequence_length, first.micro_batch_size, spec.seed)
    validation = TokenLoader(dataset, "validation", *sizes, world.rank, world.size)
    return StagedLoader(spec.training, spec.seed, train_rows), validation


def _mixed(source: MixtureSource, own: Path | Files, open_dataset: OpenDataset) -> Path | Files:
    """The data set of a mixture's source."""
    if not source.dataset:
        return own
    other = open_dataset(Manifest.at(source.dataset, "dataset"))
    if content_of(files_of(other), _TOKENIZER) != content_of(files_of(own), _TOKENIZER):
        raise ValueError(
            f"training.mixture: the tokens of '{source.name}' ({source.dataset}) are of another tokenizer than those "
            "of this run's data set: prepare both with the same data.tokenizer, a directory or a hub id"
        )
    return other

"""Training batches of a run whose length and batch change in mid-run, still a pure function of seed and number."""

import sys
from bisect import bisect_right
from collections.abc import Callable
from typing import NamedTuple

from flashslm.config import BatchShape, TrainingConfig
from flashslm.data.loader import Batch, TokenLoader
from flashslm.data.mixture import MixtureLoader
from flashslm.data.replay import ReplayLoader

TrainLoader = TokenLoader | ReplayLoader | MixtureLoader
MakeLoader = Callable[[BatchShape, int], TrainLoader]
_SEEDS_APART = 1_000_003


class _Stage(NamedTuple):
    shape: BatchShape
    loader: TrainLoader
    first_batch: int  # number of its first micro-batch in the run
    micro_batches: int  # of one step


class StagedLoader:
    """This rank's micro-batches, numbered through the run. Each stage has windows of its own length and order."""

    def __init__(self, training: TrainingConfig, seed: int, make_loader: MakeLoader) -> None:
        """`make_loader` gives the loader of a shape's micro-batches for a seed; a later stage has another seed."""
        self._stages: list[_Stage] = []
        self._starts = [shape.first_step for shape in training.batch_shapes]
        for index, shape in enumerate(training.batch_shapes):
            last = self._stages[-1] if self._stages else None
            passed = (shape.first_step - last.shape.first_step) * last.micro_batches if last else 0
            first = last.first_batch + passed if last else 0
            loader = make_loader(shape, seed + index * _SEEDS_APART)
            self._stages.append(_Stage(shape, loader, first, shape.batch_size // shape.micro_batch_size))

    def shape(self, step: int) -> BatchShape:
        """What the step, counted from 0, is made of."""
        return self._stage(step).shape

    def numbers(self, step: int) -> range:
        """The micro-batches of a step."""
        stage = self._stage(step)
        first = stage.first_batch + (step - stage.shape.first_step) * stage.micro_batches
        return range(first, first + stage.micro_batches)

    def batch(self, number: int) -> Batch:
        """One of them; the number past the last one of a stage is the next one's first."""
        stage = next(stage for stage in reversed(self._stages) if number >= stage.first_batch)
        return stage.loader.batch(number - stage.first_batch)

    def source_metrics(self, done: int) -> dict[str, float]:
        """Of each source of a mixture, the tokens in the steps that are `done` and the epochs that they make."""
        metrics: dict[str, float] = {}
        for stage in self._stages:
            if isinstance(stage.loader, MixtureLoader) and done > stage.shape.first_step:
                last = self.numbers(min(done, self._end(stage)) - 1).stop
                for name, rows in stage.loader.rows_before(last - stage.first_batch).items():
                    tokens, epochs = rows * stage.shape.sequence_length, rows / stage.loader.windows_of(name)
                    metrics[f"tokens/{name}"] = metrics.get(f"tokens/{name}", 0) + tokens
                    metrics[f"epochs/{name}"] = metrics.get(f"epochs/{name}", 0.0) + epochs
        return metrics

    def _end(self, stage: _Stage) -> int:
        """The first step that is not the stage's own."""
        later = [start for start in self._starts if start > stage.shape.first_step]
        return min(later, default=sys.maxsize)

    def _stage(self, step: int) -> _Stage:
        return self._stages[bisect_right(self._starts, step) - 1]

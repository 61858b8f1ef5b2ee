"""A candidate's recall: how well a small model of its blocks learns to recall and to copy, in a few seconds.

The small model has each stage's unit once, without repeats, at a fixed width and fixed sizes: 0.1 to 0.6 million
parameters. Designs that differ in repeats alone are scored by the same model, which a worker trains once.
"""

import time
from dataclasses import dataclass, field, replace
from functools import cached_property
from statistics import fmean

import torch

from flashslm.config import ModelConfig, TrainingConfig
from flashslm.hardware import pick_dtype
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.search.recall_tasks import TASKS, VOCAB_SIZE
from flashslm.search.space import parse_design
from flashslm.training.runtime import reproducible
from flashslm.training.spec import TrainOutcome
from flashslm.training.step import TrainStep

WIDTH = 64
SIZES = ModelConfig(head_dim=32, kv_group=1, ffn_ratio=2.0, mamba_state=32, mamba_head_dim=32, num_meta_tokens=0)
ROWS = 16  # of each task in a batch
LEARNING_RATE = 5e-3
TEST_ROWS = 128  # of each task


class RecalledOutcome(TrainOutcome):
    """A proxy training of a candidate whose recall was measured before."""

    recall_accuracy: float
    recall_time_s: float


@dataclass(frozen=True)
class RecallScore:
    """Shares of right answers of a small model, by task; guessing reaches 1/8."""

    by_task: dict[str, float]
    time_s: float

    @cached_property
    def accuracy(self) -> float:
        """The mean over the tasks."""
        return fmean(self.by_task.values())

    def attributes(self) -> dict[str, float]:
        """As the study and RecalledOutcome keep it."""
        return {"recall_accuracy": self.accuracy, "recall_time_s": self.time_s}


@dataclass
class RecallTest:
    """Scores designs; a pure function of them, the seed and the settings, on one kind of device."""

    steps: int
    length: int
    device: str
    threads: int
    seed: int
    _by_operators: dict[str, dict[str, float]] = field(default_factory=dict)  # of the small models trained so far

    def score(self, notation: str) -> RecallScore:
        """The recall of a design such as `(DFMF AFMF)x2 | (DFMF)x2`."""
        began_s, small = time.perf_counter(), small_architecture(notation)
        if small.operators not in self._by_operators:
            with reproducible(self.seed, self.threads):
                model = HybridLM.build(small, self.device, seed=self.seed)
                self._train(model)
                self._by_operators[small.operators] = self._accuracies(model)
        return RecallScore(self._by_operators[small.operators], time.perf_counter() - began_s)

    def _train(self, model: HybridLM) -> None:
        config = TrainingConfig(
            steps=self.steps,
            batch_size=ROWS * len(TASKS),
            sequence_length=self.length,
            learning_rate=LEARNING_RATE,
            warmup_steps=self.steps // 10,
        )
        dtype = pick_dtype("auto", "cuda" if self.device.startswith("cuda") else "cpu")
        step, generator = TrainStep(model, config, dtype, weight_norm=False), torch.Generator().manual_seed(self.seed)
        for number in range(self.steps):
            rows = [task(ROWS, self.length, generator) for task in TASKS.values()]
            tokens_BT, targets_BT = (torch.cat(part).to(self.device) for part in zip(*rows, strict=True))
            with torch.autocast(step.device.type, torch.bfloat16, enabled=step.autocast):
                loss = model.loss(tokens_BT, targets_BT)
            loss.backward()
            step.begin(number)
            step.update()

    @torch.no_grad()
    def _accuracies(self, model: HybridLM) -> dict[str, float]:
        generator, found = torch.Generator().manual_seed(self.seed + 1), {}
        for name, task in TASKS.items():
            tokens_BT, targets_BT = (part.to(self.device) for part in task(TEST_ROWS, self.length, generator))
            asked_BT = targets_BT >= 0
            answers_N = model.logits(model(tokens_BT)[asked_BT]).argmax(dim=-1)
            found[name] = float((answers_N == targets_BT[asked_BT]).double().mean())
        return found


def small_architecture(notation: str) -> Architecture:
    """What is trained for a design: every stage's unit once."""
    operators = "".join(replace(stage, repeats=1).operators for stage in parse_design(notation).stages)
    return build_architecture(operators, WIDTH, SIZES, VOCAB_SIZE)

"""The training loop: one for pretraining, proxies, the scaling family and continued training."""

import math
import statistics
from contextlib import ExitStack, nullcontext

import torch
from torch import Tensor

from flashslm.data.loader import IGNORE_INDEX
from flashslm.hardware import peak, pick_dtype
from flashslm.infra.process.interrupts import StopRequest, Terminated, requested_by
from flashslm.infra.storage.object_store import ObjectStore
from flashslm.models.accounting import training_flops_per_token
from flashslm.models.hybrid import HybridLM
from flashslm.ops import kernels
from flashslm.ops.gradient_check import require_right_gradients
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.distributed import (
    any_rank,
    current_world,
    shard_model,
    sum_over_ranks,
)
from flashslm.training.learning_rate import learning_rate
from flashslm.training.node import note_trained
from flashslm.training.prefetch import prefetched
from flashslm.training.run_loaders import run_loaders
from flashslm.training.runtime import StepClock, end_as_request, gc_held, reproducible
from flashslm.training.spec import (
    TRAIN_LOSS,
    VALIDATION_LOSS,
    NonFiniteLoss,
    OnMetrics,
    OnResume,
    OpenDataset,
    TrainOutcome,
    TrainSpec,
)
from flashslm.training.state import (
    begin_optimizer_state_,
    random_states,
    restore_random_states,
    training_tensors,
)
from flashslm.training.step import TrainStep
from flashslm.training.step_graph import STEP_FORM, graphed
from flashslm.training.weight_norm import mean_weight_norm


def train(
    spec: TrainSpec,
    model: HybridLM,
    open_dataset: OpenDataset,
    store: ObjectStore | None = None,
    on_metrics: OnMetrics | None = None,
    on_resume: OnResume | None = None,
) -> TrainOutcome:
    """Train the model, which is at the spec's start, in place on its own device to the spec's last step.

    With a store it saves checkpoints and continues from the newest one. Under deterministic algorithms (a CPU's
    setting) a resumed run yields bit for bit the weights and the history of one that was never stopped; `on_resume`
    then gets where it continues, and `on_metrics` the rows from there. Under torchrun the model is sharded and rank 0
    reports and saves.

    On a GPU whose kernels have wrong gradients it raises WrongGradient before anything is trained. A step whose
    gradient is not finite is skipped. Raises NonFiniteLoss where more than `max_skipped_steps` are, or the
    validation loss is not finite; Terminated after SIGTERM, SIGHUP or Ctrl-C, once the step is finished and, unless the
    store is away, saved. During the first step a signal does what it did before the call.
    """
    device_type = next(model.parameters()).device.type
    deterministic = spec.training.is_deterministic(device_type)
    with reproducible(spec.seed, spec.training.threads, deterministic=deterministic), gc_held():
        return _Trainer(spec, model, open_dataset, store, on_metrics, on_resume).run()


class _Trainer:
    def __init__(
        self,
        spec: TrainSpec,
        model: HybridLM,
        open_dataset: OpenDataset,
        store: ObjectStore | None,
        on_metrics: OnMetrics | None,
        on_resume: OnResume | None,
    ) -> None:
        self.world = current_world()
        self.spec, self.model = spec.for_processes(self.world.size), model
        self.config = self.spec.run_training
        self.on_metrics, self.on_resume = on_metrics, on_resume
        self.checkpoints = CheckpointStore(store, spec.run_key, self.config.keep_checkpoints) if store else None
        self.history: list[dict[str, float]] = []
        self.device = next(model.parameters()).device
        self.precision = pick_dtype(self.config.precision, "cuda" if self.device.type == "cuda" else "cpu")
        if self.device.type == "cuda":
            require_right_gradients(model.architecture.operators, "cuda", getattr(torch, self.precision))
        self.train_loader, self.validation_loader = run_loaders(self.spec, open_dataset, self.world)
        narrow = self.precision == "bfloat16" and self.config.gather_dtype == "bfloat16"
        shard_model(model, self.config.shard_processes, torch.bfloat16 if narrow else torch.float32)
        self.step = TrainStep(model, self.config, self.precision, weight_norm=spec.weight_norm)
        kernels.forget(STEP_FORM)  # of the training before
        self.runner = self.step if self.config.cuda_graph == "off" else graphed(self.step)
        self.skipped_steps = torch.zeros((), dtype=torch.int64, device=self.device)
        self.last_skipped = torch.zeros_like(self.skipped_steps)
        self.start, train_time_s = self._restore()
        self.saved_step = self.start
        self.clock = StepClock(train_time_s)

    def run(self) -> TrainOutcome:
        batching = prefetched(self.train_loader.batch, self.device)
        stop = StopRequest()
        with ExitStack() as saving, self.checkpoints or nullcontext(), batching as batches:
            if self.checkpoints:  # while the first step compiles kernels, not when the first checkpoint is due
                self.checkpoints.prepare(training_tensors(self.model, self.step.optimizer))
            for step in range(self.start, self.config.steps):
                numbers = self.train_loader.numbers(step)
                result = self.runner.run(step, map(batches, numbers), len(numbers))
                self._finish_step(step, *result)
                if step == self.start:  # before, there is nothing to save, and a signal ends the process
                    stop = saving.enter_context(end_as_request())
                    note_trained()
                if self._is_due(step + 1, self.config.checkpoint_every_steps):
                    self._save(step + 1)
                if any_rank(stop.requested):
                    self._save(step + 1)
                    raise self._stopped(step + 1)
        return self._result()

    def _stopped(self, done: int) -> Terminated:
        """It says what the next start continues from."""
        kept = ""
        if self.checkpoints and self.world.is_main:  # the rank that writes what points to the checkpoint
            kept = self.checkpoints.kept_at_end(done, self.config.steps)
        return Terminated(128 + requested_by(), kept)

    def _finish_step(self, step: int, loss: Tensor, gradient_norm: Tensor) -> None:
        """Note a skipped step without waiting for the device; log and validate where due."""
        done = step + 1
        skipped = ~torch.isfinite(gradient_norm)
        self.skipped_steps += skipped
        self.last_skipped = torch.where(skipped, done, self.last_skipped)
        self.clock.step()
        validate = done in self.spec.validate_at or self._is_due(done, self.config.validate_every_steps)
        if validate or self._is_due(done, self.config.log_every_steps):
            self._log(done, loss, gradient_norm, validate)

    def _is_due(self, done: int, every: int) -> bool:
        return done % every == 0 or done == self.config.steps

    def _log(self, done: int, loss: Tensor, gradient_norm: Tensor, validate: bool) -> None:
        self._check_skipped()
        with self.clock.paused():
            row = {
                "step": done,
                TRAIN_LOSS: sum_over_ranks(loss / self.world.size).item(),
                "learning_rate": learning_rate(done - 1, self.config),
                "gradient_norm": gradient_norm.item(),
                "weight_norm": mean_weight_norm(self.model, self.config.weight_norm_axes).item(),
                "skipped_steps": int(self.skipped_steps),
            }
            row |= self._rates(done - 1) | self.train_loader.source_metrics(done)
            if validate:
                row[VALIDATION_LOSS] = self._finite_validation_loss(done)
            self.history.append(row)
            self._report(row)

    def _report(self, row: dict[str, float]) -> None:
        if self.on_metrics and self.world.is_main:
            self.on_metrics(int(row["step"]), {key: value for key, value in row.items() if key != "step"})

    def _rates(self, step: int) -> dict[str, float]:
        """Speed since the last row, with the tokens of `step`.

        `mfu` is there only where the device's bf16 peak is known and bf16 is what runs.
        """
        step_time_s = self.clock.lap_s()
        shape = self.train_loader.shape(step)
        tokens_per_s = shape.tokens / step_time_s
        rates = {"tokens_per_s": tokens_per_s, "step_time_ms": 1000 * step_time_s}
        known = peak(torch.cuda.get_device_name(self.device)) if self.device.type == "cuda" else None
        if known and self.precision == "bfloat16":
            flops = training_flops_per_token(self.model.architecture, shape.sequence_length)
            rates["tflops_per_s"] = flops * tokens_per_s / (1e12 * self.world.size)
            rates["mfu"] = 1e12 * rates["tflops_per_s"] / known.flops_per_s
        if self.device.type == "cuda":
            rates["peak_memory_bytes"] = float(torch.cuda.max_memory_allocated(self.device))
        return rates

    @torch.no_grad()
    def validation_loss(self) -> float:
        """Mean nats per target over the sample of `validation_tokens`."""
        sums = torch.zeros(2, dtype=torch.float64, device=self.device)
        for batch in self.validation_loader.sample(self.config.validation_tokens):
            targets = int((batch.targets_BT != IGNORE_INDEX).sum())
            sums += torch.stack([self.step.loss(batch).double() * targets, sums.new_tensor(targets)])
        nats, count = sum_over_ranks(sums).tolist()
        return float(nats / count)

    def _finite_validation_loss(self, done: int) -> float:
        """It sees what the step's own update did; the training loss would see it a step later."""
        if not math.isfinite(loss := self.validation_loss()):
            raise self._diverged(f"the validation loss is not finite at step {done}")
        return loss

    def _check_skipped(self) -> None:
        """The one look at the count that waits for the device."""
        skipped, allowed = int(self.skipped_steps), self.config.max_skipped_steps
        if skipped > allowed:
            raise self._diverged(
                f"the gradient is not finite in {skipped} steps (max_skipped_steps is {allowed}), the last of them "
                f"step {int(self.last_skipped)}"
            )

    def _diverged(self, what: str) -> NonFiniteLoss:
        saved = f"the last good checkpoint is step {self.saved_step}" if self.saved_step else "no checkpoint yet"
        given, used = self.spec.training.learning_rate, self.config.learning_rate
        factor = f", here {used:g} by weight_norm_rate_factor" if used != given else ""
        return NonFiniteLoss(
            f"{what}; {saved}. Lower learning_rate ({given:g}{factor}) or gradient_clip "
            f"({self.config.gradient_clip:g}), or raise warmup_steps ({self.config.warmup_steps})"
        )

    def _save(self, done: int) -> None:
        if self.checkpoints is None or done == self.saved_step:
            return
        self._check_skipped()
        with self.clock.paused():
            values = {
                "train_time_s": self.clock.total_s,
                "skipped_steps": int(self.skipped_steps),
                "random_states": random_states(),
            }
            rows = [row for row in self.history if row["step"] > self.saved_step]
            validated = rows[-1].get(VALIDATION_LOSS) if rows and rows[-1]["step"] == done else None
            tensors = training_tensors(self.model, self.step.optimizer)
            self.checkpoints.save(done, tensors, values, rows, validated)
        self.saved_step = done

    def _restore(self) -> tuple[int, float]:
        """Start step and train time so far. Under weight normalisation a fresh run starts from projected weights, so
        that step 0 already sees the constraint every later step does."""
        found = self.checkpoints.load_latest(self._empty_state) if self.checkpoints else None
        if self.checkpoints is None or found is None:
            self.step.project()
            if self.checkpoints:
                begin_optimizer_state_(self.step.optimizer)  # as the first step would: memory is taken for its copy
            return 0, 0.0
        checkpoint, self.history = found
        values = checkpoint.values
        self.skipped_steps.fill_(values["skipped_steps"])
        restore_random_states(values["random_states"])
        if self.on_resume and self.world.is_main:
            self.on_resume(checkpoint.step, self.checkpoints.key(checkpoint.step))
        return checkpoint.step, values["train_time_s"]

    def _empty_state(self) -> dict[str, Tensor]:
        begin_optimizer_state_(self.step.optimizer)
        return training_tensors(self.model, self.step.optimizer)

    def _result(self) -> TrainOutcome:
        last = self.history[-1]
        steps = self.config.steps
        return TrainOutcome(
            steps=steps,
            tokens_seen=self.config.tokens,
            train_loss_nats=last[TRAIN_LOSS],
            validation_loss_nats=last[VALIDATION_LOSS],
            tokens_per_s=statistics.median(row["tokens_per_s"] for row in self.history),
            train_time_s=self.clock.total_s,
            precision=self.precision,
            device=str(self.device),
            world_size=self.world.size,
            resumed_from_step=self.start,
            skipped_steps=int(self.skipped_steps),
            history=self.history,
            kernels=kernels.decisions(),
        )

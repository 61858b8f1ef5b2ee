"""One optimizer step in its parts: gradients of micro-batches, clipping and update, projection of the weights."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from flashslm.config import TrainingConfig
from flashslm.data.loader import Batch
from flashslm.models.hybrid import HybridLM
from flashslm.training.distributed import add_up_gradients, full_tensor
from flashslm.training.learning_rate import learning_rate
from flashslm.training.optimizer import build_optimizer, set_learning_rate
from flashslm.training.weight_norm import project_weights_


class StepResult(NamedTuple):
    """Scalars on the device; a captured step overwrites those of the one before."""

    loss: Tensor  # mean nats of this process' micro-batches
    gradient_norm: Tensor  # before clipping


class TrainStep:
    """The parts in the order in which a step calls them; none waits for the device.

    `precision` bfloat16 runs matrix products under autocast; parameters and moments stay fp32.
    """

    def __init__(self, model: HybridLM, config: TrainingConfig, precision: str, *, weight_norm: bool) -> None:
        self.model, self.config, self.weight_norm = model, config, weight_norm
        self.autocast = precision == "bfloat16"
        self.device = next(model.parameters()).device
        self.optimizer = build_optimizer(model, config)
        for layer in model.residual_layers:
            layer.recomputed = config.activation_checkpointing == "on"

    def run(self, number: int, batches: Iterable[Batch], count: int) -> StepResult:
        """The step of this number, counted from 0, on its `count` micro-batches."""
        self.begin(number)
        return self.whole(batches, count)

    def begin(self, number: int) -> None:
        """Take the learning rate of a step."""
        set_learning_rate(self.optimizer, learning_rate(number, self.config))

    def whole(self, batches: Iterable[Batch], count: int) -> StepResult:
        """A step at the learning rate that is set."""
        loss = self.accumulate(batches, count)
        gradient_norm = self.update()
        self.project()
        return StepResult(loss, gradient_norm)

    def accumulate(self, batches: Iterable[Batch], count: int) -> Tensor:
        """Add up the gradients of micro-batches; returns this process' mean loss."""
        total = torch.zeros((), device=self.device)
        for done, batch in enumerate(batches, 1):
            loss = self.loss(batch) / count
            add_up_gradients(self.model, done == count or self.config.gradient_sync == "each")
            loss.backward()
            total += loss.detach()
        return total

    def loss(self, batch: Batch) -> Tensor:
        """Mean nats of a batch, which may still be on the host."""
        tokens, targets, documents = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            return self.model.loss(tokens, targets, documents if self.config.isolate_documents else None)

    def update(self) -> Tensor:
        """Clip the gradients, update the weights, drop the gradients. Returns the gradients' norm before clipping.

        Where that norm is not finite, the weights, the moments and the optimizer's step count stay as they are.
        """
        clipped = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_clip)
        gradient_norm = full_tensor(clipped)
        # What GradScaler sets: the fused AdamW reads it on the device, so that the host does not wait for it.
        self.optimizer.found_inf = (~torch.isfinite(gradient_norm)).float()  # type: ignore[attr-defined]
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return gradient_norm

    def project(self) -> None:
        """Weight normalisation, where it is on."""
        if self.weight_norm:
            project_weights_(self.model, self.config.weight_norm_axes)

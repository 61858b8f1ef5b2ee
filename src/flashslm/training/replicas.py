"""A copy of the model in each process, whose gradients cross the ranks while the backward pass still runs.

FSDP2 on shards of one rank, and torch's `replicate` that is built on it, copy every weight for each pass, on the stream
that computes, and every gradient into a buffer and out of it. DistributedDataParallel takes calls of `forward` alone,
and cuts compiled graphs at its buckets.
"""

from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn


class MeanGradients:
    """Makes each backward pass of a model end with gradients that are the mean over all ranks, while `on`.

    Each gradient is sent as it is, when it and those before it are there: in the same order on every rank.
    """

    def __init__(self, model: nn.Module) -> None:
        # About the order in which a backward pass makes them.
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad][::-1]
        self.begin(on=True)
        for number, parameter in enumerate(self._parameters):
            parameter.register_post_accumulate_grad_hook(partial(self._take, number))

    def begin(self, on: bool) -> None:
        """Before a backward pass; what one that failed has left is dropped."""
        self.on = on
        self._made: set[int] = set()
        self._sent: list[tuple[dist.Work, Tensor]] = []
        self._next = 0

    def _take(self, number: int, parameter: Tensor) -> None:
        if not self.on:
            return
        if not self._made:
            torch.autograd.Variable._execution_engine.queue_callback(self._finish)
        self._made.add(number)
        while self._next in self._made:
            self._send(self._next)
            self._next += 1

    def _send(self, number: int) -> None:
        gradient = self._parameters[number].grad
        assert gradient is not None
        mean = dist.ReduceOp.AVG if gradient.is_cuda else dist.ReduceOp.SUM  # gloo has no mean
        work = dist.all_reduce(gradient, mean, async_op=True)
        assert work is not None
        self._sent.append((work, gradient))

    def _finish(self) -> None:
        """At the end of the pass: send what is behind a parameter that had no gradient, and let the device wait."""
        for number in sorted(number for number in self._made if number > self._next):
            self._send(number)
        for work, _ in self._sent:
            work.wait()
        if sums := [gradient for _, gradient in self._sent if not gradient.is_cuda]:
            torch._foreach_div_(sums, dist.get_world_size())
        self.begin(self.on)

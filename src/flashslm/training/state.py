"""What a training run carries from step to step: named tensors, sharded or not, and random number generators."""

import base64
import logging
import threading
import time
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from flashslm.ops.timing_lock import TIMING
from flashslm.training.distributed import local_tensor

_LET_OTHERS_S = 1e-3  # between two tensors: a thread that waits for the lock would not get it otherwise
_log = logging.getLogger(__name__)


def training_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Parameters and the optimizer's state by name; they share the memory of both."""
    tensors: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        tensors[f"model/{name}"] = parameter.detach()
        for key, value in optimizer.state[parameter].items():
            tensors[f"optimizer/{name}/{key}"] = value
    return tensors


def begin_optimizer_state_(optimizer: torch.optim.AdamW) -> None:
    """AdamW's state before its first step, which a checkpoint then fills."""
    for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter, memory_format=torch.preserve_format),
            "exp_avg_sq": torch.zeros_like(parameter, memory_format=torch.preserve_format),
        }


class HostCopy:
    """Copies of tensors on the host, sharded as they are. From a GPU they go to pinned memory that is used again.

    Pinning takes most of a second a GB, which `prepare` spends in a thread. torch fills a stager's one cache when it
    stages: with a stager for each tensor the thread can be stopped between them.
    """

    def __init__(self) -> None:
        self.from_gpu = False
        self._stagers: dict[str, Any] = {}
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def prepare(self, tensors: dict[str, Tensor]) -> None:
        """Begin to take the memory for copies of these tensors; what they hold meanwhile does not matter."""
        if _on_gpu(tensors):
            self._thread = threading.Thread(target=self._take_memory, args=(tensors,), name="pin", daemon=True)
            self._thread.start()

    @property
    def preparing(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop_preparing(self) -> None:
        """What is not taken yet is taken by the next call."""
        if self._thread is not None:
            self._stop.set()
            self._thread.join()
            self._thread = None

    def __call__(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Valid until the next call."""
        self.stop_preparing()
        self.from_gpu = _on_gpu(tensors)
        if not self.from_gpu:
            return {name: tensor.detach().clone() for name, tensor in tensors.items()}
        return {name: self._stage(name, tensor) for name, tensor in tensors.items()}

    def _stage(self, name: str, tensor: Tensor) -> Tensor:
        from torch.distributed.checkpoint.staging import BlockingAsyncStager

        if name not in self._stagers:
            self._stagers[name] = BlockingAsyncStager(cache_staged_state_dict=True)
        copy: Tensor = self._stagers[name].stage({name: tensor})[name]
        return copy

    def _take_memory(self, tensors: dict[str, Tensor]) -> None:
        try:
            with _beside_the_loop(next(local_tensor(tensor).device for tensor in tensors.values())):
                for name, tensor in tensors.items():
                    if self._stop.is_set():
                        return
                    with TIMING:
                        self._stage(name, tensor)
                    time.sleep(_LET_OTHERS_S)
        except Exception as error:  # the first checkpoint tries again, and raises what it meets
            _log.warning("the host's memory for checkpoints was not taken ahead: %s", error)


def _on_gpu(tensors: dict[str, Tensor]) -> bool:
    return any(local_tensor(tensor).is_cuda for tensor in tensors.values())


def _beside_the_loop(device: torch.device) -> AbstractContextManager[Any]:
    """A stream of its own: the copies that a stager makes do not wait for steps, and steps do not wait for them."""
    torch.cuda.set_device(device)  # a thread begins on the first GPU; leaving the stream would make a context there
    return torch.cuda.stream(torch.cuda.Stream(device))


def random_states() -> dict[str, str]:
    """The generators' states as JSON values, by device."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return {device: base64.b64encode(state.numpy().tobytes()).decode() for device, state in states.items()}


def restore_random_states(states: dict[str, str]) -> None:
    """Those of devices that are here."""
    tensors = {name: torch.tensor(list(base64.b64decode(text)), dtype=torch.uint8) for name, text in states.items()}
    torch.set_rng_state(tensors["cpu"])
    if "cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["cuda"])

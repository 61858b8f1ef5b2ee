"""One training process, for tests that kill it or run several: python -m tests.unit.training.worker '{...}'."""

import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from flashslm.config import KernelsConfig
from flashslm.infra.process.collection import end_without_collection
from flashslm.models.hybrid import HybridLM
from flashslm.ops.kernels import configure
from flashslm.training import step, weight_norm
from flashslm.training.distributed import (
    World,
    add_up_gradients,
    gather_to_main,
    is_sharded,
    world_from_environment,
)
from flashslm.training.trainer import train
from tests.unit.training import tiny


def run(  # noqa: PLR0913 - what a test may set
    world: World,
    dataset: str,
    store: str,
    output: str,
    changes: dict,
    signals: dict[str, str] | None = None,
    device: str = "cpu",
    kernels: dict[str, str] | None = None,
    fused: bool = False,
) -> None:
    """Train the tiny model from its newest checkpoint; `signals` are what the process sends itself, by step."""

    def on_metrics(step: int, metrics: dict[str, float]) -> None:
        if name := (signals or {}).get(str(step)):
            os.kill(os.getpid(), signal.Signals[name])

    configure(KernelsConfig(**kernels or {}))
    model = tiny.model().to(device)
    spec = tiny.spec(tiny.config(**changes), weight_norm=True)
    whole = []  # for each micro-batch, whether its forward pass finds weights that are gathered already

    def note_weights(model: HybridLM, now: bool) -> None:
        whole.append(type(model.get_parameter("layers.0.norm.weight").data) is torch.Tensor)
        add_up_gradients(model, now)

    fused_axes: set[int] = set()  # of the matrices that the stand-in for the kernel of weight normalisation had
    with patch.object(step, "add_up_gradients", note_weights), stand_in(fused_axes) if fused else nullcontext():
        outcome = train(spec, model, tiny.fetching(Path(dataset)), tiny.DirectoryStore(Path(store)), on_metrics)
    tensors = gather_to_main(model.state_dict().items())
    weight = model.embedding.weight
    mesh = list(weight.device_mesh.shape) if is_sharded(weight) else []
    seen = {"mesh": mesh, "whole": whole, "fused_axes": sorted(fused_axes)}
    if world.is_main:
        directory = Path(output)
        directory.mkdir()
        save_file(tensors, directory / "model.safetensors")
        (directory / "result.json").write_text(json.dumps(outcome.model_dump(mode="json") | seen))


@contextmanager
def stand_in(axes_seen: set[int]) -> Iterator[None]:
    """For the kernel that divides whole rows and columns, which needs a GPU."""

    def project_(weights: Sequence[torch.Tensor], axes: Sequence[int], owner: torch.Tensor) -> None:
        for weight, axis in zip(weights, axes, strict=True):
            axes_seen.add(axis)
            weight.copy_(F.normalize(weight, dim=axis, eps=weight_norm.MIN_NORM))

    module = {"flashslm.ops.fused.weight_norm": SimpleNamespace(project_triton_=project_)}
    with patch.dict(sys.modules, module), patch.object(weight_norm, "_fits_kernel", lambda weight: weight.numel() > 0):
        yield


if __name__ == "__main__":
    end_without_collection()
    with world_from_environment() as joined:
        for arguments in json.loads(sys.argv[1]):
            run(joined, **arguments)

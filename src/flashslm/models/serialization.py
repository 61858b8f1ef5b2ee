"""A trained model on disk: model.safetensors and architecture.json."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from flashslm.models.architecture import Architecture, make_architecture
from flashslm.models.hybrid import HybridLM


def save_model(model: HybridLM, directory: Path) -> None:
    """Write weights (in their own dtype) and architecture into an existing directory."""
    save_weights(model.state_dict(), model.architecture, directory)


def save_weights(tensors: Mapping[str, torch.Tensor], architecture: Architecture, directory: Path) -> None:
    """The same from a state's whole tensors, which is what is left of a sharded model once it is gathered."""
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    save_file(whole, directory / "model.safetensors")
    facts = architecture.model_dump(mode="json")
    (directory / "architecture.json").write_text(json.dumps(facts, indent=1), encoding="utf-8")


def load_architecture(directory: Path) -> Architecture:
    return make_architecture(**json.loads((directory / "architecture.json").read_text(encoding="utf-8")))


def load_model(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> HybridLM:
    """Build the model and load its weights strictly: a missing or surplus tensor is an error."""
    model = HybridLM.build(load_architecture(directory), device=device, dtype=dtype, seed=0)
    model.load_state_dict(load_file(directory / "model.safetensors"), strict=True)
    return model.eval()

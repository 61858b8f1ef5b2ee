"""An export back as a HybridLM, bit for bit in its stored dtype."""

from pathlib import Path

import torch
from safetensors.torch import load_file

from flashslm.export.files import read_json, weight_files
from flashslm.export.hf_config import architecture_from_config
from flashslm.export.names import exported_names, exported_shapes
from flashslm.models.hybrid import HybridLM


def load_export(directory: Path, device: torch.device | str = "cpu") -> HybridLM:
    """Read an exported directory (or a TensorRT-LLM bundle) in its stored dtype.

    Raises ConfigMismatch for a config.json of another kind of model, ValueError for a missing, surplus or misshapen
    tensor.
    """
    config = read_json(directory / "config.json")
    architecture = architecture_from_config(config)
    stored = {name: tensor for file in weight_files(directory) for name, tensor in load_file(file).items()}
    shapes = exported_shapes(architecture)
    wrong = [name for name, tensor in stored.items() if shapes.get(name) != tuple(tensor.shape)]
    wrong += [name for name in shapes if name not in stored]
    if wrong:
        raise ValueError(
            f"'{directory}': {len(wrong)} tensors are missing, surplus or misshapen: {', '.join(wrong[:5])}"
        )
    model = HybridLM.build(architecture, device=device, dtype=getattr(torch, config["dtype"]), seed=0)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for ours, theirs in exported_names(architecture).items():
            parameters[ours].copy_(stored[theirs].reshape(parameters[ours].shape))
    return model

"""HybridLM and the exported model against the contract's mathematics in float64."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from tests.unit.export import reference
from tests.unit.export.reference import reference_logits


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_meta_tokens": 0},
        {"qk_norm": False},
        {"rope_type": "default"},
        {"operators": "AMD", "num_kv_heads": 4},
        {"operators": "FFM", "mamba_expand": 3, "mamba_head_dim": 4, "mamba_state": 7},
        {"operators": "AAA", "num_heads": 2, "num_kv_heads": 1, "head_dim": 16},
        {"operators": "D", "num_heads": 1, "num_kv_heads": 1, "head_dim": 32},
        {"operators": "F"},
    ],
    ids=str,
)
def test_trained_and_exported_model_compute_the_contract(changes, architecture, make_model, export, load, tokens_BT):
    model = make_model(architecture.model_copy(update=changes), seed=3)
    agree(model, export(model, dtype="float32"), load, tokens_BT)


@pytest.mark.parametrize("length", [1, 2, 3, 5, 63, 129])
def test_every_length_computes_the_contract(length, model, exported_dir, load):
    """Shorter than the convolutions, and on both sides of the chunks of 64 and 128 (memory tokens come on top)."""
    tokens_BT = torch.randint(0, 270, (1, length), generator=torch.Generator().manual_seed(length))
    agree(model, exported_dir, load, tokens_BT)


def test_a_bfloat16_export_computes_the_contract_of_its_rounded_weights(model, export, load, tokens_BT):
    directory = export(model, dtype="bfloat16")
    with torch.no_grad():
        reloaded = load(directory)(tokens_BT).logits.numpy()
    tensors = {name: tensor.float().numpy() for name, tensor in torch_tensors(directory).items()}
    expected = reference_logits(tensors, config_of(directory), tokens_BT[0].numpy())
    np.testing.assert_allclose(reloaded[0], expected, atol=1e-5)


def test_small_features_compute_the_contract(architecture, make_model, export, load, tokens_BT):
    """Where each norm's epsilon decides: what the mixers read is a thousandth of its usual size."""
    model = make_model(architecture.model_copy(update={"operators": "ADMA"}), seed=5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight", "in_proj.weight", "conv.bias")):
                parameter *= 1e-2
        model.embedding.weight *= 1e-2
        model.final_norm.weight *= 1e2
    agree(model, export(model, dtype="float32"), load, tokens_BT)


def test_the_reference_is_independent():
    imported = {
        name.name.split(".")[0]
        for node in ast.walk(ast.parse(Path(reference.__file__).read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in node.names
    }
    assert imported == {"numpy"}


def agree(model, directory, load, tokens_BT):
    tensors, config = load_file(directory / "model.safetensors"), config_of(directory)
    with torch.no_grad():
        native = model.logits(model(tokens_BT)).numpy()
        reloaded = load(directory)(tokens_BT).logits.numpy()
    for row, tokens in enumerate(tokens_BT.numpy()):
        expected = reference_logits(tensors, config, tokens)
        assert np.abs(expected).max() > 0.5  # the logits are not trivial
        np.testing.assert_allclose(native[row], expected, atol=1e-5)
        np.testing.assert_allclose(reloaded[row], expected, atol=1e-5)


def config_of(directory):
    return json.loads((directory / "config.json").read_text())


def torch_tensors(directory):
    from safetensors.torch import load_file

    return load_file(directory / "model.safetensors")

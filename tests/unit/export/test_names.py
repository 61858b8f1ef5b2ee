import pytest

from flashslm.export.names import exported_names, exported_shapes
from flashslm.models.accounting import parameters


@pytest.mark.parametrize("changes", [{}, {"num_meta_tokens": 0}, {"operators": "A"}, {"qk_norm": False}], ids=str)
def test_every_parameter_has_one_exported_name(changes, architecture, make_model):
    architecture = architecture.model_copy(update=changes)
    names, shapes = exported_names(architecture), exported_shapes(architecture)
    state = make_model(architecture).state_dict()
    assert set(names) == set(state)
    assert sorted(names.values()) == sorted(shapes)
    for ours, theirs in names.items():
        expected = tuple(state[ours].shape)
        assert shapes[theirs] == ((expected[0], 1, 4) if "conv1d.weight" in theirs else expected)


def test_shapes_count_the_models_parameters(architecture):
    total = 0
    for shape in exported_shapes(architecture).values():
        count = 1
        for size in shape:
            count *= size
        total += count
    assert total == parameters(architecture)["total"]


def test_names_are_the_contracts(architecture):
    """One layer of each kind, spelt out: TensorRT-LLM skips a misspelt tensor without a word."""
    shapes = exported_shapes(architecture)
    assert shapes["model.embed_tokens.weight"] == (270, 32)
    assert shapes["model.memory_tokens"] == (5, 32)
    assert shapes["model.final_layernorm.weight"] == (32,)
    assert "lm_head.weight" not in shapes
    layers = {
        i: {k.split(".", 3)[3]: v for k, v in shapes.items() if k.startswith(f"model.layers.{i}.")}
        for i in (0, 1, 2, 4)
    }
    conv = {f"gla.{n}_conv1d.weight": (32, 1, 4) for n in "qkv"}
    assert layers[0] == conv | {f"gla.{n}_proj.weight": (32, 32) for n in "qkvo"} | {
        "input_layernorm.weight": (32,),
        "gla.b_proj.weight": (4, 32),
        "gla.o_norm.weight": (8,),
    }
    assert layers[1] == {
        "pre_ffn_layernorm.weight": (32,),
        "ffn.gate_proj.weight": (128, 32),
        "ffn.up_proj.weight": (128, 32),
        "ffn.down_proj.weight": (32, 128),
    }
    assert layers[2] == {
        "input_layernorm.weight": (32,),
        "mamba.in_proj.weight": (2 * 64 + 2 * 8 + 8, 32),
        "mamba.conv1d.weight": (64 + 16, 1, 4),
        "mamba.conv1d.bias": (64 + 16,),
        "mamba.dt_bias": (8,),
        "mamba.A_log": (8,),
        "mamba.D": (8,),
        "mamba.norm.weight": (64,),
        "mamba.out_proj.weight": (32, 64),
    }
    assert layers[4] == {
        "input_layernorm.weight": (32,),
        "self_attn.q_proj.weight": (32, 32),
        "self_attn.k_proj.weight": (16, 32),
        "self_attn.v_proj.weight": (16, 32),
        "self_attn.o_proj.weight": (32, 32),
        "self_attn.q_norm.weight": (8,),
        "self_attn.k_norm.weight": (8,),
    }

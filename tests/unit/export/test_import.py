"""Reading back: our exports bit for bit, and a published checkpoint, written here by hand after the format's table."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from flashslm.data.tokenizer import copy_tokenizer, load_tokenizer
from flashslm.export.hf_config import ConfigMismatch
from flashslm.export.importing import import_model, load_export
from flashslm.models.serialization import load_model

# hidden 24, 3 heads of 8, 1 key-value head, FFN int(5.4 x 24) = 129 -> 128, Mamba inner 48 = 8 heads of 6, state 4.
PUBLISHED = {
    "_name_or_path": "somewhere",
    "architectures": ["NemotronFlashForCausalLM"],
    "attention_dropout": 0.0,
    "attn_hidden_size": 24,
    "attn_implementation": "flash_attention_2",
    "attn_implementation_new": "flash_attention_2",
    "auto_map": {
        "AutoConfig": "elsewhere--configuration_nemotron_flash.NemotronFlashConfig",
        "AutoModelForCausalLM": "elsewhere--modeling_nemotron_flash.NemotronFlashForCausalLM",
    },
    "bos_token_id": 1,
    "d_conv": 4,
    "eos_token_id": [2, 11],
    "ffn_expand_ratio": 5.4,
    "global_attn_idx": [],
    "hidden_size": 24,
    "hybrid_decoder_layer": "mamba",
    "initializer_range": 0.02,
    "intermediate_size": 0,
    "kq_head_dim": 8,
    "kq_norm": "none",
    "layer_type": "h",
    "layer_types": ["deltanet", "f", "m", "f", "a", "f", "m2", "f", "deltanet", "f"],
    "mamba2_headdim": 6,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_state": 4,
    "mamba_expand": 2,
    "mamba_proj_bias": False,
    "max_position_embeddings": 96,
    "mlp_hidden_act": "silu",
    "model_type": "nemotron_flash",
    "num_attention_heads": 3,
    "num_hidden_layers": 8,
    "num_key_value_heads": 1,
    "num_memory_tokens": 3,
    "orig_max_position_embeddings": 32,
    "pad_token_id": None,
    "rms_norm_eps": 1e-06,
    "rope": True,
    "rope_theta": 10000,
    "rope_type": "ntk",
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "transformers_version": "4.48.0",
    "use_cache": True,
    "v_head_dim": 8,
    "vocab_size": 61,
}
MIXER = {"input_layernorm.weight": (24,)}
LAYERS = {
    "a": MIXER
    | {f"self_attn.{name}_proj.weight": (24, 24) for name in "qo"}
    | {f"self_attn.{name}_proj.weight": (8, 24) for name in "kv"},
    "deltanet": MIXER
    | {f"gla.{name}_proj.weight": (24, 24) for name in "qkvo"}
    | {f"gla.{name}_conv1d.weight": (24, 1, 4) for name in "qkv"}
    | {"gla.b_proj.weight": (3, 24), "gla.o_norm.weight": (8,)},
    "m2": MIXER
    | {f"mamba.{name}": (8,) for name in ("dt_bias", "A_log", "D")}
    | {
        "mamba.in_proj.weight": (2 * 48 + 2 * 4 + 8, 24),
        "mamba.conv1d.weight": (56, 1, 4),
        "mamba.conv1d.bias": (56,),
        "mamba.norm.weight": (48,),
        "mamba.out_proj.weight": (24, 48),
    },
    "f": {
        "pre_ffn_layernorm.weight": (24,),
        "ffn.gate_proj.weight": (128, 24),
        "ffn.up_proj.weight": (128, 24),
        "ffn.down_proj.weight": (24, 128),
    },
}
LAYERS["m"] = LAYERS["m2"]


@pytest.fixture(scope="module")
def published_tensors():
    shapes = {"model.embed_tokens.weight": (61 + 3, 24), "model.final_layernorm.weight": (24,)}
    for i, kind in enumerate(PUBLISHED["layer_types"][:8]):
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in LAYERS[kind].items()}
    generator = torch.Generator().manual_seed(5)
    return {name: (torch.randn(shape, generator=generator) * 0.2).bfloat16() for name, shape in shapes.items()}


@pytest.fixture
def publish(published_tensors, tokenizer_dir, tmp_path):
    """Write the directory: two shards that do not follow the layers, the memory tokens as the embedding's last rows."""

    def write(config_changes=None, without=(), tensors=None):
        directory = tmp_path / "published"
        directory.mkdir()
        config = {k: v for k, v in (PUBLISHED | (config_changes or {})).items() if k not in without}
        (directory / "config.json").write_text(json.dumps(config))
        (directory / "generation_config.json").write_text("{}")
        shutil.copy(tokenizer_dir / "tokenizer.json", directory)
        stored = tensors or published_tensors
        files = [f"model-0000{1 + i % 2}-of-00002.safetensors" for i in range(len(stored))]
        weight_map = dict(zip(stored, files, strict=True))
        for file in set(files):
            save_file({name: tensor for name, tensor in stored.items() if weight_map[name] == file}, directory / file)
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
        return directory

    return write


def stored(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def bits(tensor):
    return tensor.contiguous().view(torch.uint8)


def test_a_published_checkpoint_is_read_exactly(publish, published_tensors):
    model = load_export(publish())
    a = model.architecture
    assert (a.operators, a.hidden_size, a.head_dim, a.ffn_size, a.mamba_heads) == ("DFMFAFMF", 24, 8, 128, 8)
    assert (a.rope_type, a.original_max_position_embeddings, a.rope_theta, a.qk_norm) == ("ntk", 32, 10000.0, False)
    state = model.state_dict()
    table = published_tensors["model.embed_tokens.weight"]
    assert torch.equal(state["embedding.weight"], table[:61]) and torch.equal(state["meta_tokens"], table[61:])
    conv = published_tensors["model.layers.2.mamba.conv1d.weight"]
    assert torch.equal(state["layers.2.mixer.conv.weight"], conv[:, 0])
    assert torch.equal(
        state["layers.4.mixer.k_proj.weight"], published_tensors["model.layers.4.self_attn.k_proj.weight"]
    )
    assert state["layers.6.mixer.A_log"].dtype == torch.float32
    assert sum(p.numel() for p in model.parameters()) == sum(t.numel() for t in published_tensors.values())


def test_a_published_checkpoint_computes_the_formats_mathematics(publish, published_tensors):
    from tests.unit.export.reference import reference_logits

    model = load_export(publish()).float().eval()
    tokens_BT = torch.randint(0, 61, (1, 41), generator=torch.Generator().manual_seed(2))
    tensors = {name: tensor.float().numpy() for name, tensor in published_tensors.items()}
    table = tensors["model.embed_tokens.weight"]
    tensors |= {"model.embed_tokens.weight": table[:61], "model.memory_tokens": table[61:]}
    config = PUBLISHED | {"layer_types": ["m2" if kind == "m" else kind for kind in PUBLISHED["layer_types"][:8]]}
    expected = reference_logits(tensors, config, tokens_BT[0].numpy())
    with torch.no_grad():
        logits = model.logits(model(tokens_BT))[0].numpy()
    assert abs(logits - expected).max() < 1e-5 < abs(expected).max()


def test_import_says_what_it_read(publish, published_tensors, tmp_path):
    summary = import_model(publish({"rotary_scaling": 2, "logit_cap": 30}), tmp_path / "out")
    norms = published_tensors["model.embed_tokens.weight"][:61].double().norm(dim=1)
    assert summary.dtype == "bfloat16" and summary.operators == "DFMFAFMF"
    assert summary.output_row_norm_min == pytest.approx(norms.min().item(), rel=1e-6)
    assert summary.output_row_norm_max == pytest.approx(norms.max().item(), rel=1e-6)
    assert "do not divide" in summary.warnings[0]
    assert summary.warnings[1:] == ["config.json has fields that are not read: logit_cap, rotary_scaling"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "architecture.json",
        "model.safetensors",
        "tokenizer",
    ]


def test_unit_rows_and_a_missing_tokenizer(publish, published_tensors, tmp_path):
    table = published_tensors["model.embed_tokens.weight"].float()
    unit = {"model.embed_tokens.weight": (table / table.norm(dim=1, keepdim=True)).bfloat16()}
    directory = publish(tensors=published_tensors | unit)
    (directory / "tokenizer.json").unlink()
    (warning,) = import_model(directory, tmp_path / "out").warnings
    assert "no tokenizer.json" in warning and not (tmp_path / "out" / "tokenizer").exists()


@pytest.mark.parametrize(
    ("changes", "without"),
    [
        ({"dtype": "bfloat16"}, ["torch_dtype"]),
        ({"attn_hidden_size": -1, "kq_head_dim": -1, "v_head_dim": -1}, []),
        ({}, ["attn_hidden_size", "kq_head_dim", "v_head_dim", "kq_norm", "intermediate_size", "mlp_hidden_act"]),
        ({}, ["auto_map", "architectures", "model_type", "initializer_range", "attention_dropout", "bos_token_id"]),
        ({}, ["sliding_window", "global_attn_idx", "tie_word_embeddings", "mamba_d_conv"]),
        ({"sliding_window": 16, "global_attn_idx": [0, 4]}, []),
        ({"global_attn_idx": [0]}, []),
        ({"global_attn_idx": None}, []),
        ({"mamba_expand": 2.0, "num_attention_heads": 3.0}, []),
        ({"layer_types": ["deltanet", "f", "m2", "f", "a", "f", "m2", "f"]}, []),
    ],
    ids=str,
)
def test_what_means_the_same_is_accepted(changes, without, publish, published_tensors):
    model = load_export(publish(changes, without))
    assert model.architecture.operators == "DFMFAFMF" and model.architecture.mamba_expand == 2
    assert model.embedding.weight.dtype == torch.bfloat16


def test_an_absent_dtype_is_float32(publish):
    assert load_export(publish(without=["torch_dtype"])).embedding.weight.dtype == torch.float32


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_type": "llama"}, "model_type"),
        ({"architectures": ["LlamaForCausalLM"]}, "architectures"),
        ({"architectures": 5}, "architectures is 5"),
        ({"dtype": "float32"}, "dtype is 'float32' and torch_dtype 'bfloat16'"),
        ({"torch_dtype": "float16"}, "dtype is 'float16'"),
        ({"sliding_window": 16}, "sliding_window is 16"),
        ({"sliding_window": 16, "global_attn_idx": [0]}, "sliding_window is 16"),
        ({"kq_norm": None}, "kq_norm is None"),
        ({"kq_head_dim": 16}, "kq_head_dim is 16"),
        ({"rope_type": "dynamic_ntk"}, "rope_type is 'dynamic_ntk'"),
        ({"orig_max_position_embeddings": None}, "without orig_max_position_embeddings"),
        ({"intermediate_size": 128}, "intermediate_size is 128"),
        ({"mlp_hidden_act": "relu2"}, "mlp_hidden_act"),
        ({"mamba_expand": 2.5}, "mamba_expand is 2.5"),
        ({"num_hidden_layers": 11}, "10 layer_types for num_hidden_layers 11"),
        ({"layer_types": ["gla"] * 8}, "layer_types has gla"),
    ],
    ids=str,
)
def test_what_means_something_else_is_refused(changes, expected, publish):
    with pytest.raises(ConfigMismatch) as raised:
        load_export(publish(changes))
    assert expected in str(raised.value)


def test_fields_that_nothing_else_tells_are_required(publish):
    with pytest.raises(ConfigMismatch, match=r"rope is missing; rope_type is missing; .*rope_theta is missing"):
        load_export(publish(without=["rope", "rope_theta", "rope_type"]))


def test_every_wrong_tensor_is_named(publish, published_tensors):
    tensors = dict(published_tensors)
    tensors["model.layers.0.gla.out_proj.weight"] = tensors.pop("model.layers.0.gla.o_proj.weight")
    tensors["model.layers.1.ffn.up_proj.weight"] = torch.zeros(256, 24, dtype=torch.bfloat16)
    tensors["model.final_layernorm.weight"] = torch.ones(24)
    with pytest.raises(ValueError) as raised:
        load_export(publish(tensors=tensors))
    for expected in (
        "model.layers.0.gla.o_proj.weight: tensor is missing",
        "model.layers.0.gla.out_proj.weight: no tensor of this model",
        "model.layers.1.ffn.up_proj.weight: shape is [256, 24], expected [128, 24]",
        "model.final_layernorm.weight: dtype is F32, expected BF16",  # reading it would round it
    ):
        assert expected in str(raised.value)


def test_fp32_decays_of_a_bfloat16_checkpoint_stay_fp32(publish, published_tensors):
    name = "model.layers.2.mamba.A_log"
    exact = torch.rand(8, generator=torch.Generator().manual_seed(1))
    model = load_export(publish(tensors=published_tensors | {name: exact}))
    assert torch.equal(model.state_dict()["layers.2.mixer.A_log"], exact)


def test_repeated_rows_are_accepted_when_they_are_equal(publish, published_tensors):
    table = published_tensors["model.embed_tokens.weight"]
    copies = {"lm_head.weight": table.clone(), "model.memory_tokens": table[61:].clone()}
    model = load_export(publish({"tie_word_embeddings": False}, tensors=published_tensors | copies))
    assert torch.equal(model.meta_tokens, table[61:])


@pytest.mark.parametrize(
    ("name", "rows", "expected"),
    [
        ("lm_head.weight", slice(0, 61), "lm_head.weight differs from model.embed_tokens.weight"),
        ("model.memory_tokens", slice(61, 64), "model.memory_tokens differs from the last rows"),
    ],
)
def test_repeated_rows_that_differ_are_refused(name, rows, expected, publish, published_tensors):
    other = published_tensors["model.embed_tokens.weight"][rows].clone()
    other[-1, -1] += 1
    with pytest.raises(ValueError, match=expected):
        load_export(publish(tensors=published_tensors | {name: other}))


def test_an_untied_head_must_be_there(publish):
    with pytest.raises(ValueError, match=r"lm_head\.weight: tensor is missing"):
        load_export(publish({"tie_word_embeddings": False}))


def test_a_damaged_config_is_named(publish):
    directory = publish()
    (directory / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"^config\.json is not valid JSON"):
        load_export(directory)


def test_a_directory_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json"):
        load_export(tmp_path)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": False, "rope_type": "default", "num_meta_tokens": 0}], ids=str)
def test_export_import_export_is_the_same_bytes(dtype, changes, architecture, make_model, export, tmp_path):
    model = make_model(architecture.model_copy(update=changes))
    first = export(model, dtype=dtype, max_shard_bytes=20_000)
    import_model(first, tmp_path / "out")
    for loaded in (load_export(first), load_model(tmp_path / "out")):
        assert loaded.architecture == model.architecture
        second = stored(export(loaded, dtype=dtype))
        assert second.keys() == stored(first).keys()
        for name, tensor in stored(first).items():
            assert tensor.dtype == second[name].dtype and torch.equal(bits(tensor), bits(second[name])), name


def test_a_published_checkpoint_exports_to_the_same_values(publish, published_tensors, export, tmp_path):
    directory = publish()
    import_model(directory, tmp_path / "out")
    exported = stored(export_small(load_model(tmp_path / "out"), tmp_path / "again", tmp_path / "out" / "tokenizer"))
    table = published_tensors["model.embed_tokens.weight"]
    expected = published_tensors | {"model.embed_tokens.weight": table[:61], "model.memory_tokens": table[61:]}
    assert exported.keys() == expected.keys()
    assert all(torch.equal(bits(exported[name]), bits(tensor.clone())) for name, tensor in expected.items())


def export_small(model, directory, tokenizer):
    """The model has 61 tokens, the tests' tokenizer more: cut it down to its special token and some bytes."""
    from flashslm.config import ExportConfig
    from flashslm.export.huggingface import export_huggingface

    content = json.loads((tokenizer / "tokenizer.json").read_text())
    content["model"] |= {"vocab": {t: i for t, i in content["model"]["vocab"].items() if i < 61}, "merges": []}
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    (tokenizer / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>"}))
    export_huggingface(model, tokenizer, directory, ExportConfig(dtype="bfloat16"))
    return directory


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_and_evaluation_start_from_the_imported_model(dtype, model, export, load, tokens_BT, tmp_path):
    directory = export(model, dtype=dtype)
    import_model(directory, tmp_path / "out")
    imported = load_model(tmp_path / "out")
    loss = imported.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
    with torch.no_grad():
        expected = load(directory)(tokens_BT, labels=tokens_BT).loss
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    tokenizer = load_tokenizer(tmp_path / "out" / "tokenizer")  # as a recipe's data.tokenizer
    assert tokenizer.eos_token_id == 0 and tokenizer.decode(tokenizer("the hat").input_ids[1:]) == "the hat"
    loss.backward()
    assert all(p.dtype == torch.float32 and p.grad is not None for p in imported.parameters())


def test_an_exports_tokenizer_is_one_for_data(model, export, tmp_path):
    directory = export(model)
    assert "auto_map" in json.loads((directory / "config.json").read_text()), "its config is the code's beside it"
    tokenizer, end_id = copy_tokenizer(str(directory), tmp_path / "tokenizer")
    assert end_id == 0 and tokenizer.decode(tokenizer.encode("the hat", add_special_tokens=False).ids) == "the hat"
    assert load_tokenizer(directory)("the hat") == load_tokenizer(tmp_path / "tokenizer")("the hat")


def test_a_bundle_is_read_too(exported_dir, model, tmp_path):
    from flashslm.export.tensorrt_llm import export_tensorrt_llm

    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    loaded = load_export(tmp_path / "bundle")
    assert all(torch.equal(p, loaded.state_dict()[name]) for name, p in model.state_dict().items())


def test_an_import_never_mixes_with_another_model(exported_dir, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "model.safetensors").touch()
    with pytest.raises(FileExistsError, match="already has files"):
        import_model(exported_dir, tmp_path / "out")

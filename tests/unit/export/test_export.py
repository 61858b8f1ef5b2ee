"""Writing, the TensorRT-LLM bundle, reading back, parity."""

import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from flashslm.config import ExportConfig
from flashslm.export.huggingface import export_huggingface
from flashslm.export.importing import load_export
from flashslm.export.parity import ParityError, check_parity
from flashslm.export.tensorrt_llm import deployment_notes, export_tensorrt_llm, serving_recipe


def stored(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_summary_is_what_lies_on_disk(model, tokenizer_dir, tmp_path):
    summary = export_huggingface(model, tokenizer_dir, tmp_path / "m", ExportConfig())
    assert summary.files == {path.name: path.stat().st_size for path in (tmp_path / "m").iterdir()}
    assert summary.num_bytes == sum(summary.files.values())
    assert summary.num_parameters == sum(p.numel() for p in model.parameters())
    assert summary.architecture_digest == model.architecture.digest
    readme = (tmp_path / "m" / "README.md").read_text()
    assert f"{summary.num_parameters:,}" in readme and "`DFMFAFM` (1 attention, 1 DeltaNet, 2 Mamba-2, 3 FFN)" in readme


def test_shards_hold_the_same_tensors(model, export, exported_dir):
    sharded = export(model, dtype="float32", max_shard_bytes=20_000)
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    whole, parts = stored(exported_dir), stored(sharded)
    assert whole.keys() == parts.keys() == index["weight_map"].keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in whole.values())
    files = sorted(sharded.glob("model-*.safetensors"))
    assert len(files) > 2
    for file in files:
        tensors = load_file(file)
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 20_000


def test_a_sharded_export_loads_in_transformers(model, export, load, exported, tokens_BT):
    with torch.no_grad():
        sharded = load(export(model, dtype="float32", max_shard_bytes=20_000))(tokens_BT).logits
        assert torch.equal(sharded, exported(tokens_BT).logits)


def test_a_failed_export_leaves_nothing(model, tokenizer_dir, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    monkeypatch.setattr("flashslm.export.huggingface.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        export_huggingface(model, tokenizer_dir, tmp_path / "m", ExportConfig())
    assert list(tmp_path.iterdir()) == []


def test_an_export_never_mixes_with_an_older_one(model, tokenizer_dir, tmp_path):
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model-00001-of-00002.safetensors").touch()
    with pytest.raises(FileExistsError, match="already has files"):
        export_huggingface(model, tokenizer_dir, tmp_path / "m", ExportConfig())


def test_a_tokenizer_longer_than_the_model_is_refused(make_model, architecture, tokenizer_dir, tmp_path):
    small = make_model(architecture.model_copy(update={"vocab_size": 264}))
    with pytest.raises(ValueError, match="265 tokens, the model 264"):
        export_huggingface(small, tokenizer_dir, tmp_path / "m", ExportConfig())


def test_tokenizer_files_are_portable(exported_dir):
    config = json.loads((exported_dir / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<|end|>"]
    assert "extra_special_tokens" not in config and "backend" not in config
    roles = json.loads((exported_dir / "special_tokens_map.json").read_text())
    assert roles == dict.fromkeys(("bos_token", "eos_token", "pad_token"), "<|end|>")
    ids = json.loads((exported_dir / "generation_config.json").read_text())
    assert ids == {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}


def test_bundle_links_the_weights_and_drops_the_modeling_file(exported_dir, tmp_path):
    summary = export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    weights = "model.safetensors"
    assert (tmp_path / "bundle" / weights).samefile(exported_dir / weights)
    names = {path.name for path in exported_dir.iterdir()}
    assert set(summary.files) == names - {"modeling_nemotron_flash.py"} | {"nemotron_flash.yaml"}
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_nemotron_flash.NemotronFlashConfig"}
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "list(range(270, 270 + 5))" in readme and "leaves 251\nfor prompt" in readme and "absolute path" in readme
    assert "weights are float32" in readme


def test_bundle_copies_where_links_fail(exported_dir, tmp_path, monkeypatch):
    def refuse(*args):
        raise OSError("cross-device link")

    monkeypatch.setattr("os.link", refuse)
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    copy = tmp_path / "bundle" / "model.safetensors"
    assert copy.read_bytes() == (exported_dir / "model.safetensors").read_bytes()
    assert not copy.samefile(exported_dir / "model.safetensors")


def test_recipe_fits_the_model(exported_dir, architecture, tmp_path):
    export_tensorrt_llm(exported_dir, tmp_path / "bundle", max_batch_size=20)
    recipe = yaml.safe_load((tmp_path / "bundle" / "nemotron_flash.yaml").read_text())
    assert recipe == {
        "model_factory": "NemotronFlashForCausalLM",
        "compile_backend": "torch-cudagraph",
        "max_batch_size": 20,
        "max_seq_len": 256,
        "max_num_tokens": 20 * 256,
        "enable_chunked_prefill": True,
        "cuda_graph_batch_sizes": [1, 2, 4, 8, 16, 20],
        "kv_cache_config": {"free_gpu_memory_fraction": 0.9, "enable_block_reuse": False},
        "transforms": {
            "gather_logits_before_lm_head": {"enabled": True},
            "fuse_mamba_a_log": {"stage": "post_load_fusion", "enabled": True},
        },
    }
    assert serving_recipe(architecture, 64)["max_num_tokens"] == 8192


def test_deployment_notes_name_what_the_kernels_refuse(architecture):
    released = architecture.model_copy(
        update={
            "hidden_size": 2048,
            "num_heads": 16,
            "num_kv_heads": 4,
            "head_dim": 128,
            "mamba_state": 128,
            "mamba_head_dim": 64,
        }
    )
    assert deployment_notes(released, "bfloat16") == []
    odd = released.model_copy(
        update={"operators": "DM", "num_heads": 4, "head_dim": 512, "mamba_state": 96, "mamba_head_dim": 1024}
    )
    notes = "\n".join(deployment_notes(odd, "float32"))
    for expected in ("float32", "head size 512", "no attention", "state 96", "4 Mamba-2 heads"):
        assert expected in notes


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_import_is_bit_exact(dtype, model, export):
    first = export(model, dtype=dtype, max_shard_bytes=20_000)
    loaded = load_export(first)
    assert loaded.architecture == model.architecture
    second = stored(export(loaded, dtype=dtype))
    assert all(torch.equal(tensor, second[name]) for name, tensor in stored(first).items())
    expected = getattr(torch, dtype)
    for (name, ours), theirs in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(ours.to(expected), theirs.to(expected)), name


def test_import_refuses_what_verify_refuses(export, model):
    directory = export(model, dtype="float32")
    tensors = load_file(directory / "model.safetensors")
    tensors["model.norm.weight"] = tensors.pop("model.final_layernorm.weight")
    save_file(tensors, directory / "model.safetensors")
    with pytest.raises(ValueError, match=r"2 tensors .*model\.norm\.weight, model\.final_layernorm\.weight"):
        load_export(directory)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parity_holds(dtype, model, export, tokens_BT):
    tokens_BT[:, [0, 4]] = 0  # documents begin with the token that is also the padding
    before = {name: p.clone() for name, p in model.named_parameters()}
    parity = check_parity(model, export(model, dtype=dtype), tokens_BT, tolerance=1e-4)
    assert parity.max_abs_difference <= 1e-5
    assert (parity.num_tokens, parity.greedy_tokens) == (2 * 19, 2 * 10)
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_parity_finds_a_swapped_tensor(model, export, tokens_BT):
    """Equal shapes, wrong places: only the logits can tell."""
    directory = export(model, dtype="float32")
    tensors = load_file(directory / "model.safetensors")
    q, k = (f"model.layers.0.gla.{name}_proj.weight" for name in "qk")
    tensors[q], tensors[k] = tensors[k].clone(), tensors[q].clone()
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ParityError, match="are off by"):
        check_parity(model, directory, tokens_BT, tolerance=1e-4)


def test_parity_finds_a_broken_cache(model, export, tokens_BT):
    """A modeling file that forgets a state in generation: its logits without a cache are right."""
    directory = export(model, dtype="float32")
    file = directory / "modeling_nemotron_flash.py"
    code = file.read_text()
    broken = code.replace("cache.layers[index] = states", "cache.layers[index] = states if index else None")
    assert broken != code
    file.write_text(broken)
    with pytest.raises(ParityError, match="greedy tokens"):
        check_parity(model, directory, tokens_BT, tolerance=1e-4)

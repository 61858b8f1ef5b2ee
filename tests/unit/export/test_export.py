"""Writing, the TensorRT-LLM bundle, parity."""

import json
import shutil

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, processors
from transformers import AutoConfig, PreTrainedTokenizerFast

from flashslm.config import ExportConfig
from flashslm.export.autodeploy import serving_recipes
from flashslm.export.huggingface import export_huggingface
from flashslm.export.parity import ParityError, check_parity, reloaded
from flashslm.export.tensorrt_llm import deployment_notes, export_tensorrt_llm
from flashslm.models.architecture import InfeasibleArchitecture
from flashslm.models.hybrid import HybridLM
from tests.unit.export.damage import change_json


def stored(directory):
    return {name: tensor for file in directory.glob("*.safetensors") for name, tensor in load_file(file).items()}


def test_summary_is_what_lies_on_disk(model, tokenizer_dir, tmp_path):
    summary = export_huggingface(model, tokenizer_dir, tmp_path / "m", ExportConfig())
    assert summary.files == {path.name: path.stat().st_size for path in (tmp_path / "m").iterdir()}
    assert summary.num_bytes == sum(summary.files.values())
    assert summary.num_parameters == sum(p.numel() for p in model.parameters())
    assert summary.architecture_digest == model.architecture.digest
    norms = model.embedding.weight.detach().bfloat16().double().norm(dim=1)
    assert summary.output_row_norm_min == pytest.approx(norms.min().item(), rel=1e-6)
    assert summary.output_row_norm_max == pytest.approx(norms.max().item(), rel=1e-6)
    readme = (tmp_path / "m" / "README.md").read_text()
    assert f"{norms.min():.4f} to {norms.max():.4f}" in readme and "Not all rows are unit vectors" in readme
    assert f"{summary.num_parameters:,}" in readme and "`DFMFAFM` (1 DeltaNet, 2 Mamba-2, 1 attention, 3 FFN)" in readme


def test_a_reload_writes_no_progress_bar_into_the_log(exported_dir, capsys):
    from transformers.utils import logging

    with reloaded(exported_dir):
        assert capsys.readouterr().err == "" and logging.is_progress_bar_enabled()


@pytest.mark.parametrize("operators", ["MF", "DM", "A"])
def test_the_readme_has_the_sizes_of_the_models_own_operators(operators, model, tokenizer_dir, tmp_path):
    architecture = model.architecture.model_copy(update={"operators": operators})
    export_huggingface(HybridLM.build(architecture, seed=0), tokenizer_dir, tmp_path / "m", ExportConfig())
    readme = (tmp_path / "m" / "README.md").read_text()
    rows = {"F": "| FFN width |", "D": "| DeltaNet heads", "A": "| rotary base |", "M": "| Mamba-2 inner"}
    assert {letter for letter, row in rows.items() if row in readme} == set(operators)
    assert ", 0 " not in readme and "(0 " not in readme


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

    monkeypatch.setattr("flashslm.export.weights.save_file", fail)
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
    with pytest.raises(ValueError, match="265 tokens, vocab_size is 264"):
        export_huggingface(small, tokenizer_dir, tmp_path / "m", ExportConfig())


def test_a_tokenizer_that_names_tokens_it_has_not_is_refused(model, tokenizer_dir, tmp_path):
    source = shutil.copytree(tokenizer_dir, tmp_path / "source")
    change_json(source / "tokenizer_config.json", extra_special_tokens=["<|end|>", "<new>"])
    with pytest.raises(ValueError, match=r"names <new> in tokenizer_config\.json, which its tokenizer\.json does not"):
        export_huggingface(model, source, tmp_path / "m", ExportConfig())
    assert not (tmp_path / "m").exists()


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
    assert set(summary.files) == names - {"modeling_nemotron_flash.py"} | {
        "nemotron_flash.yaml",
        "nemotron_flash_1.3.yaml",
    }
    config = json.loads((tmp_path / "bundle" / "config.json").read_text())
    assert config["auto_map"] == {"AutoConfig": "configuration_nemotron_flash.NemotronFlashConfig"}
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "list(range(270, 270 + 5))" in readme and "leaves\n251 for prompt" in readme and "absolute path" in readme
    assert "weights are float32" in readme


def test_runtime_finds_the_bundles_config_class_by_its_name(exported_dir, load, tmp_path):
    """TensorRT-LLM imports the configuration file alone and keys on the class's name; `load` lends the module cache."""
    export_tensorrt_llm(exported_dir, tmp_path / "named_bundle")
    config = AutoConfig.from_pretrained(tmp_path / "named_bundle", trust_remote_code=True)
    assert type(config).__name__ == "NemotronFlashConfig"
    fields = json.loads((tmp_path / "named_bundle" / "config.json").read_text())
    for name in sorted(fields.keys() - {"auto_map", "dtype"}):
        assert getattr(config, name) == fields[name] and type(getattr(config, name)) is type(fields[name]), name


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
    recipe, later = (
        yaml.safe_load((tmp_path / "bundle" / file).read_text())
        for file in ("nemotron_flash.yaml", "nemotron_flash_1.3.yaml")
    )
    assert recipe.pop("cuda_graph_batch_sizes") == [1, 2, 4, 8, 16, 20]
    assert later.pop("cuda_graph_config") == {"batch_sizes": [1, 2, 4, 8, 16, 20]}
    assert later == recipe
    assert recipe == {
        "model_factory": "NemotronFlashForCausalLM",
        "compile_backend": "torch-cudagraph",
        "max_batch_size": 20,
        "max_seq_len": 256,
        "max_num_tokens": 20 * 256,
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "free_gpu_memory_fraction": 0.9,
            "enable_block_reuse": False,
            "mamba_ssm_cache_dtype": "float32",
        },
        "transforms": {
            "gather_logits_before_lm_head": {"enabled": True},
            "fuse_mamba_a_log": {"stage": "post_load_fusion", "enabled": True},
        },
    }
    assert {options["max_num_tokens"] for options in serving_recipes(architecture, 64).values()} == {8192}


def test_the_bundles_readme_says_which_recipe_is_for_which_version(exported_dir, tmp_path):
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "README.md").read_text()
    assert "| 1.2.x | `nemotron_flash.yaml` |" in readme
    assert "that have AutoDeploy | `nemotron_flash_1.3.yaml` |" in readme
    for fact in ("PR 19028", "Issue 14013", "cuda_graph_config", '"detokenize": false'):
        assert fact in readme
    assert all(len(line) <= 120 for line in readme.splitlines())


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
    for expected in ("float32", "head size 512", "no attention", "state 96"):
        assert expected in notes


def test_unit_rows_are_said_to_be(make_model, architecture, tokenizer_dir, tmp_path):
    """As weight normalisation leaves them; rounding to bfloat16 moves a norm by less than the tolerance."""
    model = make_model(architecture)
    with torch.no_grad():
        model.embedding.weight /= model.embedding.weight.norm(dim=1, keepdim=True)
    summary = export_huggingface(model, tokenizer_dir, tmp_path / "m", ExportConfig(dtype="bfloat16"))
    assert 0.998 < summary.output_row_norm_min < 1 < summary.output_row_norm_max < 1.002
    assert "All rows are unit vectors here" in (tmp_path / "m" / "README.md").read_text()
    stored_rows = stored(tmp_path / "m")["model.embed_tokens.weight"]
    assert torch.equal(stored_rows, model.embedding.weight.bfloat16())  # export rounds, and changes nothing else


def test_an_architecture_without_a_place_is_refused(make_model, architecture, tokenizer_dir, tmp_path):
    model = make_model(architecture.model_copy(update={"operators": "AW"}))
    with pytest.raises(InfeasibleArchitecture, match=r"cannot be exported: operator W \(window_attention\)"):
        export_huggingface(model, tokenizer_dir, tmp_path / "m", ExportConfig())
    assert list(tmp_path.iterdir()) == []


def test_texts_begin_as_documents_did_in_training(model, tokenizer_dir, tmp_path):
    """A tokenizer with a bos token of its own, and a template that ends texts: training used neither."""
    source = shutil.copytree(tokenizer_dir, tmp_path / "source")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A <|end|>", special_tokens=[("<s>", 265), ("<|end|>", 0)]
    )
    tokenizer.save(str(source / "tokenizer.json"))
    config = json.loads((source / "tokenizer_config.json").read_text())
    config |= {"bos_token": "<s>", "add_bos_token": False, "add_eos_token": True}
    (source / "tokenizer_config.json").write_text(json.dumps(config))
    export_huggingface(model, source, tmp_path / "m", ExportConfig())
    assert json.loads((tmp_path / "m" / "config.json").read_text())["bos_token_id"] == 0
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path / "m")
    plain = Tokenizer.from_file(str(tmp_path / "m" / "tokenizer.json"))
    words = plain.encode("the cat", add_special_tokens=False).ids
    assert loaded("the cat").input_ids == plain.encode("the cat").ids == [0, *words]
    assert loaded("the cat", "the hat").input_ids[: len(words) + 1] == [0, *words]
    assert loaded.bos_token == loaded.eos_token == "<|end|>"


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

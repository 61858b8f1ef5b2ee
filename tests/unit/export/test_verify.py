import json

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from flashslm.config import ExportConfig
from flashslm.export.tensorrt_llm import export_tensorrt_llm
from flashslm.export.verify import verify_export
from tests.unit.export.damage import change_json, change_tensors


def test_exports_are_sound(exported_dir, export, model, tmp_path):
    assert verify_export(exported_dir) == []
    assert verify_export(export(model, dtype="bfloat16")) == []
    assert verify_export(export(model, dtype="float32", max_shard_bytes=20_000)) == []
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    assert verify_export(tmp_path / "bundle") == []


O_PROJ, NORM = "model.layers.0.gla.o_proj.weight", "model.final_layernorm.weight"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            lambda t: t.update({"model.layers.0.gla.out_proj.weight": t.pop(O_PROJ)}),
            {O_PROJ, "model.layers.0.gla.out_proj.weight"},
        ),
        (lambda t: t.pop(NORM), {NORM}),
        (lambda t: t.update({"lm_head.weight": torch.zeros(270, 32)}), {"lm_head.weight"}),
        (
            lambda t: t.update({"model.layers.2.mamba.conv1d.weight": torch.zeros(80, 4)}),
            {"model.layers.2.mamba.conv1d.weight"},
        ),
        (lambda t: t.update({NORM: torch.ones(32, dtype=torch.bfloat16)}), {NORM}),
    ],
    ids=["renamed", "missing", "surplus", "shape", "dtype"],
)
def test_a_wrong_tensor_is_found(change, expected, directory):
    change_tensors(directory, change)
    assert {problem.subject for problem in verify_export(directory)} == expected


@pytest.mark.parametrize("name", ["configuration_nemotron_flash.py", "modeling_nemotron_flash.py", "tokenizer.json"])
def test_a_missing_file_is_found(name, directory):
    (directory / name).unlink()
    assert [problem.subject for problem in verify_export(directory)] == [name]


@pytest.mark.parametrize("name", ["config.json", "tokenizer_config.json"])
def test_a_truncated_json_file_is_found(name, directory):
    (directory / name).write_text((directory / name).read_text()[:-4])
    ((subject, message),) = verify_export(directory)
    assert subject == name and "not valid JSON" in message


def test_missing_weights_are_found(directory):
    (directory / "model.safetensors").unlink()
    ((subject, message),) = verify_export(directory)
    assert subject == "weights" and "model.safetensors" in message


def test_a_truncated_weight_file_is_found(directory):
    file = directory / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    (problem,) = verify_export(directory)
    assert problem.message.startswith("model.safetensors is damaged")


@pytest.mark.parametrize("metadata", [None, [], {}, {"total_size": 7}, {"total_size": "1"}, {"total_size": 1e308}])
def test_an_index_with_another_size_than_its_tensors_is_found(metadata, export, model):
    directory = export(model, dtype="bfloat16", max_shard_bytes=20_000)
    index = directory / "model.safetensors.index.json"
    total_bytes = 2 * sum(parameter.numel() for parameter in model.parameters())
    assert json.loads(index.read_text())["metadata"] == {"total_size": total_bytes}
    change_json(index, metadata=metadata)
    ((subject, message),) = verify_export(directory)
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    assert subject == "model.safetensors.index.json"
    assert message == f"metadata.total_size is {stated!r}: the tensors take {total_bytes} bytes"


def test_an_index_that_disagrees_is_found(export, model, tmp_path):
    directory = export(model, dtype="float32", max_shard_bytes=20_000)
    index = json.loads((directory / "model.safetensors.index.json").read_text())
    del index["weight_map"][NORM]
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    assert NORM in verify_export(directory)[0].message


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("tokenizer.json", "{}", "is not a tokenizer"),
        ("config.json", "[1]", "not a JSON object"),
        ("configuration_nemotron_flash.py", "class Other: pass", "names class NemotronFlashConfig"),
        ("modeling_nemotron_flash.py", "def", "not valid Python"),
    ],
)
def test_a_file_of_another_kind_is_found(name, text, expected, directory):
    (directory / name).write_text(text)
    ((subject, message),) = verify_export(directory)
    assert subject == name and expected in message


def test_a_missing_readme_is_found(directory):
    (directory / "README.md").unlink()
    assert [str(p) for p in verify_export(directory)] == ["README.md: file is missing: it says how to run the model"]


def test_json_deeper_than_the_parser_goes_is_found(directory):
    (directory / "generation_config.json").write_text("[" * 100_000)
    ((subject, message),) = verify_export(directory)
    assert subject == "generation_config.json" and message.startswith("is not valid JSON")


@pytest.mark.parametrize(("metadata", "found"), [({"format": "tf"}, "'tf'"), ({"made": "by hand"}, "''")], ids=str)
def test_weights_of_another_framework_are_found(metadata, found, directory):
    file = directory / "model.safetensors"
    save_file(load_file(file), file, metadata=metadata)
    assert [str(problem) for problem in verify_export(directory)] == [
        f"model.safetensors: its metadata's format is {found}: transformers 4.57 loads only 'pt'"
    ]
    save_file(load_file(file), file)  # without metadata, transformers takes it for PyTorch's
    assert verify_export(directory) == []


def test_a_directory_in_the_weights_place_is_named(directory):
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").mkdir()
    ((subject, message),) = verify_export(directory)
    assert subject == "weights" and message.startswith("model.safetensors cannot be read")


@pytest.mark.parametrize("name", ["model.bin", "..", "", "sub/model.safetensors"])
def test_an_index_that_names_no_safetensors_file_beside_it_is_found(name, export, model):
    directory = export(model, dtype="float32", max_shard_bytes=20_000)
    index = directory / "model.safetensors.index.json"
    change_json(index, weight_map=json.loads(index.read_text())["weight_map"] | {NORM: name})
    ((subject, message),) = verify_export(directory)
    assert subject == "weights" and message.endswith("no weight_map from tensors to .safetensors files beside it")


def test_tensors_that_no_loader_would_see_are_found(export, model):
    directory = export(model, dtype="float32", max_shard_bytes=20_000)
    save_file({"a": torch.zeros(2)}, directory / "model-old.safetensors")
    assert [problem.subject for problem in verify_export(directory)] == ["model-old.safetensors"]


@pytest.mark.parametrize("index", [[], {}, {"weight_map": {"a": 1}}], ids=str)
def test_a_damaged_index_is_found(index, directory):
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    ((subject, message),) = verify_export(directory)
    assert subject == "weights" and "model.safetensors.index.json" in message


def test_what_the_format_cannot_hold_is_found(directory):
    change_json(directory / "config.json", mamba2_headdim=16)
    assert any("4 Mamba-2 heads" in problem.message for problem in verify_export(directory))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model_factory": "AutoModelForCausalLM"}, "another class is built"),
        ({"max_seq_len": 257}, "max_seq_len is 257: the model has positions for 6 to 256"),
        ({"max_seq_len": 5}, "max_seq_len is 5"),
        ({"max_num_tokens": 63}, "max_batch_size is 64: allowed is 1 to max_num_tokens, 63"),
        ({"max_batch_size": "64"}, "max_batch_size is '64': expected int, 1 to 2,147,483,647"),
        ({"max_batch_size": 0}, "max_batch_size is 0: expected int, 1 to 2,147,483,647"),
        ({"max_num_tokens": 10**20}, "max_num_tokens is 100000000000000000000: expected int, 1 to 2,147,483,647"),
        ({"max_batch_size": "x" * 10**5}, "(100,002 characters): expected int"),
        ({"cuda_graph_batch_sizes": [65] * 10**4}, "characters): expected integers from 1 to max_batch_size, 64"),
        ({"enable_chunked_prefill": "no"}, "enable_chunked_prefill is 'no': expected bool"),
        (
            {"enable_chunked_prefill": False, "max_num_tokens": 255},
            "max_num_tokens is 255: without enable_chunked_prefill no step takes a prompt of max_seq_len, 256",
        ),
        (
            {"kv_cache_config": {"enable_block_reuse": False, "free_gpu_memory_fraction": 5.0}},
            "kv_cache_config.free_gpu_memory_fraction is 5.0: expected above 0, at most 1",
        ),
        ({"transforms": None}, "transforms is None: expected a mapping of options for each"),
        ({"transforms": {"gather_logits_before_lm_head": True}}, "True}: expected a mapping of options for each"),
        ({"max_batch_size": 32}, "cuda_graph_batch_sizes"),
        ({"cuda_graph_batch_sizes": None}, "cuda_graph_batch_sizes is None"),
        ({"cuda_graph_batch_sizes": []}, "cuda_graph_batch_sizes is []"),
        (
            {"kv_cache_config": {"enable_block_reuse": False, "mamba_ssm_cache_dtype": "fp8"}},
            "mamba_ssm_cache_dtype is 'fp8': expected one of auto, float16, bfloat16, float32",
        ),
        ({"kv_cache_config": {"enable_block_reuse": True}}, "enable_block_reuse must be false"),
        ({"kv_cache_config": None}, "enable_block_reuse must be false"),
        ({"kv_cache_config": ["enable_block_reuse"]}, "enable_block_reuse must be false"),
    ],
    ids=str,
)
def test_a_recipe_that_does_not_fit_is_found(changes, expected, exported_dir, tmp_path):
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    recipe = tmp_path / "bundle" / "nemotron_flash.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    ((subject, message),) = verify_export(tmp_path / "bundle")
    assert subject == "nemotron_flash.yaml" and expected in message


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"cuda_graph_batch_sizes": [1]}, "cuda_graph_batch_sizes is refused by this file's versions"),
        (
            {"cuda_graph_config": None},
            "cuda_graph_config.batch_sizes is None: expected integers from 1",
        ),
        ({"cuda_graph_config": {"batch_sizes": [1, 65]}}, "cuda_graph_config.batch_sizes is [1, 65]"),
        ({"cuda_graph_config": {"max_batch_size": 64}}, "cuda_graph_config.batch_sizes is None"),
        ({"max_seq_len": 257}, "max_seq_len is 257"),
    ],
    ids=str,
)
def test_a_later_recipe_that_does_not_fit_is_found(changes, expected, exported_dir, tmp_path):
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    assert verify_export(tmp_path / "bundle") == []
    recipe = tmp_path / "bundle" / "nemotron_flash_1.3.yaml"
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    ((subject, message),) = verify_export(tmp_path / "bundle")
    assert subject == "nemotron_flash_1.3.yaml" and expected in message


def test_a_bundle_of_an_earlier_export_has_one_recipe(exported_dir, tmp_path):
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    (tmp_path / "bundle" / "nemotron_flash_1.3.yaml").unlink()
    assert verify_export(tmp_path / "bundle") == []


def test_a_recipe_may_be_changed_within_the_model(exported_dir, tmp_path):
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    recipe = tmp_path / "bundle" / "nemotron_flash.yaml"
    changes = {"max_batch_size": 8, "max_seq_len": 100, "max_num_tokens": 50, "cuda_graph_batch_sizes": [1, 8]}
    recipe.write_text(yaml.safe_dump(yaml.safe_load(recipe.read_text()) | changes))
    assert verify_export(tmp_path / "bundle") == []
    for broken in ("- a list", "a: [unclosed"):
        recipe.write_text(broken)
        assert [problem.subject for problem in verify_export(tmp_path / "bundle")] == ["nemotron_flash.yaml"]


def test_a_bundle_without_its_recipe_is_found(exported_dir, tmp_path):
    export_tensorrt_llm(exported_dir, tmp_path / "bundle")
    (tmp_path / "bundle" / "nemotron_flash.yaml").unlink()
    assert [problem.subject for problem in verify_export(tmp_path / "bundle")] == ["nemotron_flash.yaml"]


def test_a_directory_in_a_files_place_is_found(directory):
    (directory / "tokenizer.json").unlink()
    (directory / "tokenizer.json").mkdir()
    assert [str(problem) for problem in verify_export(directory)] == ["tokenizer.json: cannot be read (Is a directory)"]


def test_default_export_config_is_accepted(model, tokenizer_dir, tmp_path):
    from flashslm.export.huggingface import export_huggingface

    export_huggingface(model, tokenizer_dir, tmp_path / "new", ExportConfig())
    assert verify_export(tmp_path / "new") == []


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda t: t[O_PROJ].view(-1).__setitem__(3, float("nan")), "1 of 1024 values are not finite"),
        (lambda t: t[NORM].__setitem__(0, float("inf")), "1 of 32 values are not finite"),
        (lambda t: t[O_PROJ].fill_(0.0), "all 1024 values are 0: the weights were never written"),
        (lambda t: t[O_PROJ].fill_(0.5), "all 1024 values are 0.5"),
    ],
    ids=["nan", "infinity", "zeros", "constant"],
)
def test_weights_that_were_never_trained_are_found(change, expected, directory):
    change_tensors(directory, change)
    ((subject, message),) = verify_export(directory)
    assert subject in (O_PROJ, NORM) and message.startswith(expected)


@pytest.mark.parametrize("name", ["configuration_nemotron_flash.py", "modeling_nemotron_flash.py"])
def test_code_that_is_not_this_projects_is_found(name, directory):
    with (directory / name).open("a") as file:
        file.write("\nimport os\n")
    ((subject, message),) = verify_export(directory)
    assert subject == name and "not this project's code" in message


def test_a_further_python_file_is_found(directory):
    (directory / "deep").mkdir()
    (directory / "deep" / "more.py").write_text("import os")
    ((subject, message),) = verify_export(directory)
    assert subject == "deep/more.py" and "a loader may run it" in message

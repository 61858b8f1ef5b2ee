"""verify-export and import on the fields of config.json: each damage is named, by its field and by no other."""

import json

import pytest
from safetensors.torch import load_file

from flashslm.export.hf_config import SIZES, TOKEN_IDS, ConfigMismatch
from flashslm.export.importing import load_export
from flashslm.export.verify import verify_export
from tests.unit.export.damage import change_json

MODEL_CLASS = "modeling_nemotron_flash.NemotronFlashForCausalLM"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("sliding_window", 512, "sliding_window is 512: only None is supported"),
        ("hidden_size", 32.0, "hidden_size is 32.0: expected int"),
        ("hidden_size", 4, "hidden_size is 4: expected 8 to 2,147,483,647"),
        ("mamba_expand", 2.0, "mamba_expand is 2.0: expected int"),
        ("mamba_d_conv", 4.0, "mamba_d_conv is 4.0: only 4 is supported"),
        ("kq_norm", None, "kq_norm is None: only 'none' or 'rms' is supported"),
        ("rope_type", "dynamic_ntk", "rope_type is 'dynamic_ntk': only 'default' or 'ntk' or None is supported"),
        ("attention_dropout", 0, "attention_dropout is 0: only 0.0 is supported"),
        ("dtype", "float16", "dtype is 'float16': only 'bfloat16' or 'float32' is supported"),
        ("num_hidden_layers", 6, "7 layer_types for num_hidden_layers 6"),
        ("layer_types", ["gla"] * 7, "layer_types has gla: allowed are deltanet, m2, a, f"),
        ("num_attention_heads", 3, "num_attention_heads 3 does not divide hidden_size 32"),
        (
            "orig_max_position_embeddings",
            None,
            "rope_type is 'ntk' without orig_max_position_embeddings, the length before the extension",
        ),
        ("ffn_expand_ratio", 3.99, "ffn_expand_ratio 3.99 of hidden_size 32 is less than 128, the narrowest FFN"),
        ("eos_token_id", 270, "eos_token_id is 270: outside the vocabulary of 270"),
        ("pad_token_id", -1, "pad_token_id is -1: outside the vocabulary of 270"),
        (
            "auto_map",
            {"AutoConfig": "configuration_nemotron_flash.Config", "AutoModelForCausalLM": MODEL_CLASS},
            "auto_map.AutoConfig is 'configuration_nemotron_flash.Config': "
            "expected 'configuration_nemotron_flash.NemotronFlashConfig'",
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_field_is_named_and_no_other(field, value, message, directory):
    change_json(directory / "config.json", **{field: value})
    assert [str(problem) for problem in verify_export(directory)] == [f"config.json: {message}"]


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("num_memory_tokens", 4, {"model.memory_tokens: shape is [5, 32], expected [4, 32]"}),
        ("num_memory_tokens", 0, {"model.memory_tokens: no tensor of this model"}),
        (
            "kq_norm",
            "none",
            {f"model.layers.4.self_attn.{name}_norm.weight: no tensor of this model" for name in "qk"},
        ),
        (
            "ffn_expand_ratio",
            8.0,
            {
                f"model.layers.{layer}.ffn.{name}_proj.weight: shape is {found}, expected {due}"
                for layer in (1, 3, 5)
                for name, found, due in (
                    ("gate", [128, 32], [256, 32]),
                    ("up", [128, 32], [256, 32]),
                    ("down", [32, 128], [32, 256]),
                )
            },
        ),
        (
            "vocab_size",
            271,
            {"model.embed_tokens.weight: shape is [270, 32], expected [271, 32]"},
        ),
        (
            "eos_token_id",
            9,
            {
                "tokenizer_config.json: eos_token has id 0, config.json's eos_token_id is 9",
                "special_tokens_map.json: eos_token has id 0, config.json's eos_token_id is 9",
                "generation_config.json: eos_token_id is 0, not 9",
            },
        ),
        (
            "max_position_embeddings",
            255,
            {"tokenizer_config.json: model_max_length is 251: expected 1 to 250, the positions less the memory tokens"},
        ),
        (
            "auto_map",
            {"AutoConfig": "configuration_nemotron_flash.NemotronFlashConfig"},
            {"nemotron_flash.yaml: file is missing: auto_map names no model, so the directory is a bundle"},
        ),
    ],
    ids=lambda value: "problems" if isinstance(value, set) else None,
)
def test_a_field_that_the_other_files_contradict_is_found_by_what_it_contradicts(field, value, expected, directory):
    change_json(directory / "config.json", **{field: value})
    problems = [str(problem) for problem in verify_export(directory)]
    assert set(problems) == expected and len(problems) == len(expected)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("quantization_config", {"bits": 4}, "quantization_config is {'bits': 4}: no field of this format"),
        ("sliding_windows", 8, "sliding_windows is 8: no field of this format"),
        ("torch_dtype", "float16", "torch_dtype is 'float16' and dtype 'float32': which one?"),
    ],
)
def test_a_field_that_no_export_has_is_found(field, value, message, directory):
    change_json(directory / "config.json", **{field: value})
    assert [str(problem) for problem in verify_export(directory)] == [f"config.json: {message}"]


def test_fields_that_change_nothing_may_be_there(directory):
    change_json(directory / "config.json", transformers_version="5.23.0", use_cache=True, torch_dtype="float32")
    assert verify_export(directory) == []


def test_another_dtype_than_the_tensors_is_found_in_every_one(directory):
    tensors = load_file(directory / "model.safetensors").keys()
    change_json(directory / "config.json", dtype="bfloat16")
    problems = verify_export(directory)
    assert {problem.subject for problem in problems} == tensors
    assert {problem.message for problem in problems} == {"dtype is F32, expected BF16"}


def test_layers_in_another_order_are_found_in_those_layers(directory):
    change_json(directory / "config.json", layer_types=["deltanet", "f", "m2", "f", "m2", "f", "a"])
    layers = {".".join(problem.subject.split(".")[:3]) for problem in verify_export(directory)}
    assert layers == {"model.layers.4", "model.layers.6"}


# Beyond any model or of another kind, as JSON: none may come to a traceback, or to memory.
ABSURD = ("1e308", "-1e308", "NaN", "Infinity", "-Infinity", "1" + "0" * 18, "-1", "1" + "0" * 400, "true", "1e-320")
NUMBERS = sorted({*SIZES.values(), *TOKEN_IDS, "num_hidden_layers", "rope_theta", "ffn_expand_ratio"})
NUMBERS += ["orig_max_position_embeddings", "attention_dropout", "mamba_d_conv"]


@pytest.mark.parametrize("number", ABSURD, ids=lambda text: text[:20])
@pytest.mark.parametrize("field", NUMBERS)
def test_an_absurd_number_is_one_short_line_that_names_it(field, number, directory):
    write_number(directory / "config.json", field, number)
    (problem,) = verify_export(directory)
    assert problem.subject == "config.json" and problem.message.startswith(f"{field} is ")
    assert len(problem.message) < 200


@pytest.mark.parametrize("number", ABSURD, ids=lambda text: text[:20])
@pytest.mark.parametrize("field", sorted({*SIZES.values(), "ffn_expand_ratio", "num_hidden_layers"}))
def test_an_absurd_number_is_not_imported(field, number, directory):
    write_number(directory / "config.json", field, number)
    with pytest.raises(ConfigMismatch) as raised:
        load_export(directory)
    assert f" {field} is " in str(raised.value) and len(str(raised.value)) < 400 + len(str(directory))


def write_number(path, field, number):
    text = json.dumps(json.loads(path.read_text()) | {field: "here"})
    path.write_text(text.replace('"here"', number))


@pytest.mark.parametrize("number", ABSURD[:-1], ids=lambda text: text[:20])
def test_an_absurd_initializer_range_is_named(number, directory):
    write_number(directory / "config.json", "initializer_range", number)
    (problem,) = verify_export(directory)
    assert problem.subject == "config.json" and problem.message.startswith("initializer_range is ")


def test_what_is_just_within_the_limits_is_no_problem(directory):
    change_json(directory / "config.json", max_position_embeddings=2**31 - 1, rope_theta=1e12, rms_norm_eps=1.0)
    assert verify_export(directory) == []

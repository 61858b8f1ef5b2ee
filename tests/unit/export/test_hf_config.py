import ast
import json
import math
import re
import subprocess
import sys

import pytest
import torch

from flashslm.config import ModelConfig
from flashslm.export.hf_config import (
    FIELDS,
    MODEL_FIELDS,
    ConfigMismatch,
    architecture_from_config,
    config_from_architecture,
    config_problems,
    export_problems,
    ffn_ratio,
)
from flashslm.export.model_code import CONFIGURATION_FILE, TEMPLATES
from flashslm.models.architecture import InfeasibleArchitecture, build_architecture

IDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
EXPECTED = {
    "architectures": ["NemotronFlashForCausalLM"],
    "model_type": "nemotron_flash",
    "auto_map": {
        "AutoConfig": "configuration_nemotron_flash.NemotronFlashConfig",
        "AutoModelForCausalLM": "modeling_nemotron_flash.NemotronFlashForCausalLM",
    },
    "dtype": "bfloat16",
    "vocab_size": 270,
    "hidden_size": 32,
    "num_hidden_layers": 7,
    "layer_types": ["deltanet", "f", "m2", "f", "a", "f", "m2"],
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "attn_hidden_size": -1,
    "kq_head_dim": -1,
    "v_head_dim": -1,
    "kq_norm": "rms",
    "rope": True,
    "rope_theta": 500.0,
    "rope_type": "ntk",
    "max_position_embeddings": 256,
    "orig_max_position_embeddings": 64,
    "sliding_window": None,
    "global_attn_idx": [],
    "attention_dropout": 0.0,
    "intermediate_size": 0,
    "ffn_expand_ratio": 4.0,
    "mlp_hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba2_headdim": 8,
    "mamba_expand": 2,
    "num_memory_tokens": 5,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 3,
}


@pytest.fixture
def config(architecture):
    return config_from_architecture(architecture, "bfloat16", IDS)


def test_every_field_has_its_value_and_type(config):
    assert config == EXPECTED
    assert {name: type(value) for name, value in config.items()} == {n: type(v) for n, v in EXPECTED.items()}
    assert config.keys() == FIELDS
    assert config_problems(config) == []


def test_the_plain_variants(architecture):
    plain = architecture.model_copy(
        update={"qk_norm": False, "rope_type": "default", "original_max_position_embeddings": 0}
    )
    config = config_from_architecture(plain, "float32", IDS)
    assert config == EXPECTED | {
        "kq_norm": "none",
        "rope_type": "default",
        "orig_max_position_embeddings": None,
        "dtype": "float32",
    }
    assert config_problems(config) == []
    assert architecture_from_config(config) == architecture_from_config(config | {"rope_type": None}) == plain


@pytest.mark.parametrize("changes", [{}, {"rope_type": "default"}, {"qk_norm": False}, {"num_meta_tokens": 0}], ids=str)
def test_config_leads_back_to_the_architecture(changes, architecture):
    architecture = architecture.model_copy(update=changes)
    config = config_from_architecture(architecture, "bfloat16", IDS)
    assert architecture_from_config(json.loads(json.dumps(config))) == architecture


@pytest.mark.parametrize("width", [128, 192, 320, 448, 1024, 1280, 1536, 1792, 2048, 2304, 2560, 3072])
@pytest.mark.parametrize("ratio", [1.0, 2.5, 8 / 3, 3.0, 4.0])
def test_ffn_width_survives_the_ratio(width, ratio):
    built = build_architecture("AF", width, ModelConfig(head_dim=32, ffn_ratio=ratio), vocab_size=1000)
    assert architecture_from_config(config_from_architecture(built, "float32", IDS)) == built


def test_ffn_ratio_is_the_short_one():
    assert ffn_ratio(6144, 2048) == 3.0
    assert ffn_ratio(128, 96) == 1.34  # int(1.33 * 96) // 128 is 0


def test_what_cannot_be_exported_is_named_at_once(architecture):
    assert export_problems(architecture) == []
    changes = {
        "operators": "GLFWM",
        "num_heads": 3,
        "num_kv_heads": 1,
        "head_dim": 8,
        "ffn_size": 200,
        "mamba_head_dim": 16,
        "num_meta_tokens": 256,
    }
    problems = export_problems(architecture.model_copy(update=changes))
    expected = ["G (gated_deltanet)", "L (gla)", "W (window_attention)", "3 heads of head_dim 8 are 24 channels"]
    expected += ["ffn_size 200 .* use 128", "4 Mamba-2 heads", "256 meta tokens leave no position"]
    assert len(problems) == len(expected)
    for problem, pattern in zip(problems, expected, strict=True):
        assert re.search(re.escape(pattern) if "*" not in pattern else pattern, problem)
    with pytest.raises(InfeasibleArchitecture) as raised:
        config_from_architecture(architecture.model_copy(update=changes), "float32", IDS)
    assert all(problem in str(raised.value) for problem in problems)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"rope_theta": 0.5}, "rope_theta 0.5: the format takes 1 to 1,000,000,000,000"),
        ({"norm_eps": 2.0}, "norm_eps 2.0: the format takes 1e-20 to 1"),
        ({"max_position_embeddings": 2**31}, "max_position_embeddings 2147483648: the format takes 1 to 2,147,483,647"),
    ],
    ids=str,
)
def test_numbers_that_verification_would_refuse_are_not_exported(changes, expected, architecture):
    assert export_problems(architecture.model_copy(update=changes)) == [expected]


def test_asking_needs_no_torch():
    code = "import sys; from flashslm.export.hf_config import export_problems; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("kq_head_dim", 16),
        ("kq_norm", None),
        ("kq_norm", "l2"),
        ("rope", False),
        ("rope_type", "dynamic_ntk"),
        ("orig_max_position_embeddings", None),
        ("orig_max_position_embeddings", 0),
        ("orig_max_position_embeddings", "64"),
        ("sliding_window", 512),
        ("intermediate_size", 128),
        ("mlp_hidden_act", "relu2"),
        ("tie_word_embeddings", False),
        ("mamba_d_conv", 3),
        ("mamba_expand", 2.0),
        ("num_attention_heads", 3),
        ("mamba2_headdim", 0),
        ("rms_norm_eps", 0.0),
        ("rope_theta", math.inf),
        ("ffn_expand_ratio", math.nan),
        ("layer_types", ["a", "gated_deltanet", "f", "f", "f", "f", "f"]),
        ("num_hidden_layers", 6),
    ],
)
def test_what_does_not_fit_is_refused_by_name(field, value, config):
    with pytest.raises(ConfigMismatch, match=field):
        architecture_from_config(config | {field: value})


def test_the_architectures_own_reasons_are_passed_on_in_the_files_words(config):
    expected = r"^config\.json: num_attention_heads 4 is not a multiple of num_key_value_heads 3$"
    with pytest.raises(ConfigMismatch, match=expected):
        architecture_from_config(config | {"num_key_value_heads": 3})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "float16"),
        ("architectures", ["LlamaForCausalLM"]),
        ("model_type", "llama"),
        ("attention_dropout", 0),
        ("pad_token_id", 270),
        ("eos_token_id", [2]),
        ("auto_map", {"AutoConfig": "configuration_other.NemotronFlashConfig"}),
        ("auto_map", {"AutoModelForCausalLM": "modeling_nemotron_flash.NemotronFlashForCausalLM"}),
        ("auto_map", EXPECTED["auto_map"] | {"AutoTokenizer": ["a.B", None]}),
    ],
)
def test_what_says_another_directory_is_named(field, value, config):
    (problem,) = config_problems(config | {field: value})
    assert field in problem
    architecture_from_config(config | {field: value})  # it is the same model all the same


@pytest.mark.parametrize("field", sorted(EXPECTED))
def test_a_missing_field_is_named(field, config):
    del config[field]
    assert config_problems(config) == [f"{field} is missing"]
    if field in MODEL_FIELDS:
        with pytest.raises(ConfigMismatch, match=f"{field} is missing"):
            architecture_from_config(config)


def test_all_problems_come_at_once(config):
    with pytest.raises(ConfigMismatch, match=r"sliding_window.*kq_norm.*hidden_size is '32'"):
        architecture_from_config(config | {"kq_norm": "l2", "sliding_window": 8, "hidden_size": "32"})


def test_config_class_keeps_every_field_under_the_installed_transformers(exported_dir, exported, tmp_path):
    fields = json.loads((exported_dir / "config.json").read_text())
    assert type(exported.config).__name__ == "NemotronFlashConfig"
    exported.config.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    for name in sorted(fields.keys() - {"auto_map", "dtype"}):
        assert getattr(exported.config, name) == fields[name], name
        assert saved[name] == fields[name], name
    assert exported.config.dtype == torch.float32


def test_layer_types_are_set_after_the_base_class():
    """transformers 5 refuses them inside super().__init__(); a class that passes them on fails only there."""
    tree = ast.parse((TEMPLATES / CONFIGURATION_FILE).read_text())
    methods = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
    statements = [ast.unparse(statement) for statement in methods["__init__"].body]
    base = statements.index("super().__init__(**kwargs)")
    assert "FIELDS" in statements[base - 1] and "kwargs.pop" in statements[base - 1]
    assert any(s.startswith("self.layer_types = ") for s in statements[base + 1 :])
    assert all(isinstance(s, ast.Expr) for s in methods["validate"].body)

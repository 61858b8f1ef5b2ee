"""The vLLM plug-in as far as it goes without vLLM: places of tensors, states, limits, prompts, the entry point."""

import asyncio
import importlib
import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from flashslm.export.names import exported_shapes
from flashslm.models.accounting import state_bytes
from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS
from flashslm_vllm import limits, names, states, weights

PLUGIN = Path(__file__).parents[3] / "plugins" / "vllm"


def variants(architecture: Architecture) -> list[Architecture]:
    """Each exportable operator alone and all together, with and without what is optional."""
    changes = [{"operators": letter} for letter in EXPORTABLE_OPERATORS]
    changes += [{"qk_norm": False}, {"num_meta_tokens": 0}, {"num_kv_heads": 4}]
    return [architecture, *(architecture.model_copy(update=change) for change in changes)]


def test_every_tensor_of_every_export_has_a_place(architecture):
    for a in variants(architecture):
        parts: dict[str, list[names.Placement]] = {}
        for place in names.placements(a).values():
            parts.setdefault(place.parameter, []).append(place)
        assert names.placements(a).keys() == exported_shapes(a).keys()
        for places in parts.values():
            assert len({place.shape[1:] for place in places}) == 1
            ends = [place.first_row + place.shape[0] for place in sorted(places, key=lambda place: place.first_row)]
            assert sorted(place.first_row for place in places) == [0, *ends[:-1]]


def parameters_of(a: Architecture) -> dict[str, torch.Tensor]:
    """Empty ones of the size that the parts fill; the embedding has rows that pad it."""
    rows: dict[str, int] = {}
    widths = {}
    for place in names.placements(a).values():
        rows[place.parameter] = max(rows.get(place.parameter, 0), place.first_row + place.shape[0])
        widths[place.parameter] = place.shape[1:]
    rows["model.embed_tokens.weight"] += 13
    return {name: torch.full((rows[name], *widths[name]), torch.nan) for name in rows}


def test_an_export_is_loaded(exported_dir, architecture):
    tensors, parameters = load_file(exported_dir / "model.safetensors"), parameters_of(architecture)
    assert weights.load(parameters, tensors.items(), architecture) == parameters.keys()

    def expected(layer: str, *parts: str) -> torch.Tensor:
        return torch.cat([tensors[f"{layer}.{part}.weight"] for part in parts])

    attention, delta, ffn, mamba = (f"model.layers.{architecture.operators.index(letter)}" for letter in "ADFM")
    pairs = {
        f"{attention}.operator.qkv_proj.weight": expected(f"{attention}.self_attn", "q_proj", "k_proj", "v_proj"),
        f"{delta}.operator.in_proj.weight": expected(f"{delta}.gla", "q_proj", "k_proj", "v_proj", "b_proj"),
        f"{delta}.operator.conv_weight": expected(f"{delta}.gla", "q_conv1d", "k_conv1d", "v_conv1d"),
        f"{ffn}.operator.gate_up_proj.weight": expected(f"{ffn}.ffn", "gate_proj", "up_proj"),
        f"{mamba}.operator.A": -tensors[f"{mamba}.mamba.A_log"].exp(),
        f"{mamba}.operator.in_proj.weight": tensors[f"{mamba}.mamba.in_proj.weight"],
    }
    for name, value in pairs.items():
        assert torch.equal(parameters[name], value), name
    text, meta, padding = parameters["model.embed_tokens.weight"].split([270, 5, 13])
    assert torch.equal(text, tensors["model.embed_tokens.weight"])
    assert torch.equal(meta, tensors["model.memory_tokens"]) and padding.isnan().all()
    filled = [name for name in parameters if name != "model.embed_tokens.weight"]
    assert not any(parameters[name].isnan().any() for name in filled)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda tensors: tensors | {"lm_head.weight": torch.zeros(270, 32)},
            r"lm_head.weight \(270, 32\).*no such tensor",
        ),
        (lambda tensors: tensors | {"model.memory_tokens": torch.zeros(4, 32)}, r"memory_tokens \(4, 32\)"),
        (
            lambda tensors: {n: t for n, t in tensors.items() if "o_norm" not in n},
            r"lacks model.*o_norm.*verify-export",
        ),
    ],
)
def test_other_tensors_are_refused(exported_dir, architecture, change, message):
    tensors = change(load_file(exported_dir / "model.safetensors"))
    with pytest.raises(ValueError, match=message):
        weights.load(parameters_of(architecture), tensors.items(), architecture)


def test_states_are_those_of_the_cache_account(architecture):
    for a in variants(architecture):
        total = sum(states.mixer_state(operator, a).num_bytes(2, 4) for operator in a.operators)
        assert total == state_bytes(a)
    assert states.mixer_state("D", architecture) == ((3, 96), (4, 8, 8))
    assert states.mixer_state("M", architecture) == ((3, 80), (8, 8, 8))
    assert states.largest_state(architecture, 2, 4) == states.mixer_state("M", architecture)
    without = architecture.model_copy(update={"operators": "AF"})
    assert states.largest_state(without, 2, 4).num_bytes(2, 4) == 0


def settings(**changes) -> SimpleNamespace:
    """What limits.py reads of a VllmConfig, supported but for `changes`, by "section__field"."""
    sections = {
        "parallel_config": {"tensor_parallel_size": 1, "pipeline_parallel_size": 1},
        "model_config": {"quantization": None, "enable_prompt_embeds": False, "dtype": torch.bfloat16},
        "cache_config": {"cache_dtype": "auto", "enable_prefix_caching": False},
    }
    top = {"speculative_config": None, "additional_config": {}}
    for name, value in changes.items():
        section, _, field = name.rpartition("__")
        (sections[section] if section else top)[field] = value
    return SimpleNamespace(**{name: SimpleNamespace(**fields) for name, fields in sections.items()}, **top)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parallel_config__tensor_parallel_size": 2}, "--tensor-parallel-size 2: .* use 1"),
        ({"parallel_config__pipeline_parallel_size": 4}, "--pipeline-parallel-size 4"),
        ({"model_config__quantization": "fp8"}, "--quantization fp8"),
        ({"cache_config__cache_dtype": "fp8_e4m3"}, "--kv-cache-dtype fp8_e4m3"),
        ({"cache_config__enable_prefix_caching": True}, "--enable-prefix-caching"),
        ({"model_config__enable_prompt_embeds": True}, "--enable-prompt-embeds"),
        ({"speculative_config": object()}, "--speculative-config"),
        ({"model_config__dtype": torch.float32}, "--dtype float32: .* use --dtype bfloat16"),
        ({"additional_config": {"gdn_prefill_backend": "cutedsl"}}, "gdn_prefill_backend cutedsl"),
    ],
)
def test_what_is_not_supported_is_named(architecture, change, message):
    (problem,) = limits.setting_problems(settings(**change), architecture)
    assert re.search(message, problem)
    assert limits.setting_problems(settings(), architecture) == []


def test_architectures_that_vllm_cannot_run(architecture):
    wide = architecture.model_copy(update={"hidden_size": 2048, "head_dim": 512})
    assert ["head size 512" in problem for problem in limits.setting_problems(settings(), wide)] == [True]
    recurrent = architecture.model_copy(update={"operators": "DFMF"})
    assert ["without an attention" in problem for problem in limits.setting_problems(settings(), recurrent)] == [True]
    float32 = settings(model_config__dtype=torch.float32)
    assert limits.setting_problems(float32, architecture.model_copy(update={"operators": "AFM"})) == []


@dataclass(frozen=True)
class TokenizeParams:
    max_total_tokens: int | None


def tokenize(prompt, params):
    ids = prompt.get("prompt_token_ids") or [ord(letter) for letter in prompt["prompt"]]
    return {**prompt, "prompt_token_ids": ids[: params.max_total_tokens]}


class HfRenderer:
    """Stands for vLLM's: the ids of a prompt, cut to what the parameters leave."""

    def _tokenize_singleton_prompt(self, prompt, params):
        return tokenize(prompt, params)

    async def _tokenize_singleton_prompt_async(self, prompt, params):
        return tokenize(prompt, params)


@pytest.fixture
def renderer(monkeypatch):
    for name, contents in (("hf", {"HfRenderer": HfRenderer}), ("params", {"TokenizeParams": TokenizeParams})):
        module = ModuleType(f"vllm.renderers.{name}")
        vars(module).update(contents)
        monkeypatch.setitem(sys.modules, module.__name__, module)
    sys.modules.pop("flashslm_vllm.renderer", None)
    made = importlib.import_module("flashslm_vllm.renderer").MetaTokenRenderer()
    del sys.modules["flashslm_vllm.renderer"]  # made of the stand-ins: later tests import it as it is
    made.model_config = SimpleNamespace(hf_config=SimpleNamespace(vocab_size=200, num_memory_tokens=3))
    return made


def test_meta_tokens_stand_before_every_prompt(renderer):
    rendered = renderer._tokenize_singleton_prompt({"prompt": "ab"}, TokenizeParams(None))
    assert rendered == {"prompt": "ab", "prompt_token_ids": [200, 201, 202, 97, 98]}
    awaited = renderer._tokenize_singleton_prompt_async({"prompt_token_ids": [7, 8, 9]}, TokenizeParams(5))
    assert asyncio.run(awaited)["prompt_token_ids"] == [200, 201, 202, 7, 8]  # 5 positions, of which 2 for text
    with pytest.raises(ValueError, match="token id 200 in a prompt: ids of text end at 199"):
        renderer._tokenize_singleton_prompt({"prompt_token_ids": [200, 1]}, TokenizeParams(None))


def test_the_entry_point_is_there():
    project = tomllib.loads((PLUGIN / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, function = project["entry-points"]["vllm.general_plugins"]["flashslm"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert {"flashslm", "vllm>=0.22,<0.23"} == set(project["dependencies"])

"""The peer in vLLM, on a stand-in for its engine: what it is asked for, and what becomes of its tokens."""

import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from flashslm.benchmarking import decode, peer, vllm_peer
from flashslm.benchmarking.case import prompts
from flashslm.benchmarking.vllm_peer import VllmDecoder
from flashslm.config import KernelsConfig
from flashslm.export.hf_config import architecture_from_config


class Engine:
    """Reads one prompt per step, as a full schedule does; then every step gives each sequence a token."""

    def __init__(self):
        self.requests, self.aborted, self.steps = {}, [], 0

    def add_request(self, name, prompt, sampling):
        assert name not in self.requests
        self.requests[name] = SimpleNamespace(prompt=prompt["prompt_token_ids"], sampling=sampling, tokens=[])

    def abort_request(self, names):
        self.aborted += names
        for name in names:
            self.requests.pop(name, None)

    def step(self):
        self.steps += 1
        waiting = [request for request in self.requests.values() if not request.tokens]
        for request in waiting[:1] or self.requests.values():
            assert len(request.tokens) < request.sampling.max_tokens
            request.tokens.append(sum(request.prompt) % 50 + len(request.tokens))
        return [
            SimpleNamespace(request_id=name, outputs=[SimpleNamespace(token_ids=list(request.tokens))])
            for name, request in self.requests.items()
        ]


MADE: list["LLM"] = []


class LLM:
    def __init__(self, **settings):
        self.settings, self.llm_engine = settings, Engine()
        self.config = json.loads(Path(settings["model"], "config.json").read_text(encoding="utf-8"))
        MADE.append(self)


@pytest.fixture
def vllm(monkeypatch) -> ModuleType:
    module = ModuleType("vllm")
    module.__spec__ = importlib.machinery.ModuleSpec("vllm", None)
    module.__version__, module.LLM = "0.22.0", LLM
    module.SamplingParams = lambda **given: SimpleNamespace(**given)
    monkeypatch.setitem(sys.modules, "vllm", module)
    MADE.clear()
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "else")
    monkeypatch.delenv("VLLM_ATTENTION_BACKEND", raising=False)
    return module


@pytest.fixture
def case(make_case, qwen3):
    return make_case(architecture=qwen3)


def test_the_engine_has_the_case_s_sizes(vllm, case):
    VllmDecoder(case)
    (llm,) = MADE
    assert llm.config["architectures"] == ["Qwen3ForCausalLM"] and llm.config["num_hidden_layers"] == 2
    assert llm.config["hidden_size"] == 32 and llm.config["vocab_size"] == 50
    assert llm.settings["load_format"] == "dummy" and llm.settings["skip_tokenizer_init"]
    assert llm.settings["max_model_len"] == case.capacity + 1 and llm.settings["max_num_seqs"] == 2
    assert llm.settings["max_num_batched_tokens"] >= 2 * 20 and llm.settings["dtype"] == "float32"
    assert not llm.settings["enable_prefix_caching"]  # else the second prefill would be free
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"  # else a step of the engine is not one of the clock


@pytest.mark.parametrize("chosen", ["", "FLASHINFER"])
def test_its_attention(vllm, case, monkeypatch, chosen):
    """As an option: vLLM 0.22 does not read the variable."""
    if chosen:
        monkeypatch.setenv("VLLM_ATTENTION_BACKEND", chosen)
    decoder = VllmDecoder(case)
    assert MADE[0].settings["attention_config"] == {"backend": chosen or "FLASH_ATTN"}
    assert (chosen or "FLASH_ATTN") in decoder.engine


def test_a_prefill_gives_each_prompt_s_first_token_and_ends_earlier_sequences(vllm, case):
    decoder = VllmDecoder(case)
    engine, prompts_BT = MADE[0].llm_engine, prompts(case)
    for _ in range(2):
        assert decoder.prefill(prompts_BT).tolist() == [sum(row) % 50 for row in prompts_BT.tolist()]
        before = engine.steps
        for _ in range(6):
            decoder.advance()
        assert engine.steps == before + 6
        assert [len(request.tokens) for request in engine.requests.values()] == [7, 7]
    assert len(engine.requests) == 2 and len(engine.aborted) == 2


def test_its_record(vllm, case, monkeypatch):
    found = peer.measure_peer(peer.Peer("vllm", case))
    assert found.engine == "vllm 0.22.0 (offline engine in one process, FLASH_ATTN, random weights)"
    assert found.preset == "tiny" and len(found.ttft_ms_repeats) == 3 and found.tpot_ms_median > 0
    monkeypatch.setattr(decode.peer, "_require_vllm", lambda library, case: None)
    result = decode.bench_decode(case, KernelsConfig(), "vllm")
    assert result.peer.engine == found.engine and result.peer.ttft_ratio > 0


def test_one_engine_measures_a_group(vllm, case):
    cases = [case, replace(case, context=30, batch=1), replace(case, batch=3, new_tokens=2)]
    hybrid, other = peer.Peer("vllm", case), peer.Peer("hf", case)
    peers = [peer.Peer("vllm", c) for c in cases]
    assert peer.share_a_decoder([*peers, other, other]) == [peers, [other, other]]
    assert peer.share_a_decoder([hybrid, hybrid._replace(case=replace(case, preset="else"))]) != [[hybrid] * 2]
    found = list(peer.measure_peers(peers))
    (llm,) = MADE
    assert [result.tokens_per_s * result.tpot_ms_mean / 1e3 for result in found] == pytest.approx([2, 1, 3])
    assert llm.settings["max_num_seqs"] == 3 and llm.settings["max_model_len"] >= 30 + case.capacity - 20 + 1


def test_many_prompts_are_read_in_several_steps(vllm, case, monkeypatch):
    """Whoever is read first gets a token in every further step, for which there must be space."""
    monkeypatch.setattr(vllm_peer, "STEP_TOKENS", 21)
    VllmDecoder(case)
    assert MADE[0].settings["max_num_batched_tokens"] == 21
    assert MADE[0].settings["max_model_len"] == case.capacity + 2


def test_it_needs_a_gpu_and_the_package(case, monkeypatch):
    with pytest.raises(ValueError, match=r"peer 'vllm' needs a GPU.*use --peer hf"):
        peer.find_peer("vllm", case)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    on_gpu = case.__class__(**{**case.__dict__, "device": "cuda"})
    with pytest.raises(ValueError, match=r"needs the package vllm, which is not installed.*takes torch 2"):
        peer.find_peer("vllm", on_gpu)


def test_another_shape(vllm, make_case):
    found = peer.find_peer("vllm:qwen3-1.7b", make_case(device="cuda"))
    assert (found.name, found.case.preset, found.case.context) == ("vllm", "qwen3-1.7b", 20)


@pytest.fixture
def plugin(monkeypatch) -> None:
    named = SimpleNamespace(names={"flashslm"})
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: named)


def test_our_own_model_by_the_plug_in(vllm, plugin, make_case, architecture):
    hybrid = architecture.model_copy(update={"operators": "DFMFAF", "ffn_size": 128, "num_meta_tokens": 3})
    case = make_case(architecture=hybrid, device="cuda")
    assert peer.find_peer("vllm-plugin", case) == peer.Peer("vllm-plugin", case)
    decoder = peer.DECODERS["vllm-plugin"](make_case(architecture=hybrid))
    (llm,) = MADE
    assert architecture_from_config(llm.config) == hybrid
    assert llm.settings["max_model_len"] == 3 + case.capacity + 1
    assert llm.settings["max_num_batched_tokens"] >= 2 * (3 + 20)
    assert decoder.engine.startswith("vllm 0.22.0 (flashslm-vllm, ")


def test_what_the_plug_in_needs(vllm, plugin, make_case, architecture, monkeypatch):
    with pytest.raises(ValueError, match=r"same model as ours, leave out :qwen3-0\.6b"):
        peer.find_peer("vllm-plugin:qwen3-0.6b", make_case(device="cuda"))
    window = make_case(architecture=architecture.model_copy(update={"operators": "WF"}), device="cuda")
    with pytest.raises(ValueError, match=r"runs what can be exported: operator W"):
        peer.find_peer("vllm-plugin", window)
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: SimpleNamespace(names=set()))
    with pytest.raises(ValueError, match=r"needs the plug-in.*pip install plugins/vllm"):
        peer.find_peer("vllm-plugin", make_case(device="cuda"))


def test_it_asks_for_memory_that_is_free(vllm, case, monkeypatch):
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (60 * 2**30, 80 * 2**30))
    VllmDecoder(replace(case, device="cuda"))
    assert MADE[0].settings["gpu_memory_utilization"] == pytest.approx(0.9 * 60 / 80)

"""A measured latency: its keys, and how its numbers hang together."""

import json

import pytest
import torch

from flashslm.benchmarking import clock, decode, memory
from flashslm.config import KernelsConfig
from flashslm.hardware import Peak
from flashslm.models.accounting import parameters, prefill_flops

# What the command promises to scripts.
KEYS = {
    *("preset", "engine", "batch", "context", "new_tokens", "ttft_ms", "tpot_ms_median", "tpot_ms_p90", "mbu"),
    *("tokens_per_s", "device", "commit", "mbu_measured", "tpot_ms_mean", "bytes_per_token", "operator_share"),
    *("peak_memory_bytes", "versions", "dtype", "kernels", "command", "date", "peer", "repeats"),
    *("prefill_flops", "ttft_floor_ms"),
}


@pytest.fixture
def copy_10_gb_per_s(monkeypatch):
    monkeypatch.setattr(memory, "copy_bytes_per_s", lambda device: 1e10)


def test_every_key_and_the_arithmetic(make_case, architecture, copy_10_gb_per_s):
    case = make_case(repeats=3)
    found = json.loads(decode.bench_decode(case, KernelsConfig()).model_dump_json())
    assert found.keys() >= KEYS
    assert (found["preset"], found["batch"], found["context"], found["new_tokens"]) == ("tiny", 2, 20, 6)
    assert found["engine"] == "flashslm (torch)" and found["kernels"]["decode/cpu/float32"] == "torch"
    assert found["parameters"] == parameters(architecture)["total"] and found["operators"] == "DFMFAF"
    assert found["bytes_per_token"] == case.bytes_per_token
    assert found["mbu_measured"] == pytest.approx(case.bytes_per_token / (found["tpot_ms_median"] * 1e-3) / 1e10)
    assert found["tokens_per_s"] == pytest.approx(2 * 1000 / found["tpot_ms_mean"])
    assert 0 < found["tpot_ms_median"] <= found["tpot_ms_p90"] and found["ttft_ms"] > 0
    assert len(found["tpot_ms_median_repeats"]) == 3 and found["repeats"] == 3
    assert sum(found["operator_share"].values()) == pytest.approx(1)
    assert list(found["operator_share"]) == ["deltanet", "mamba2", "attention", "ffn", "head", "residual"]
    assert found["peer"] is None
    assert found["prefill_flops"] == case.prefill_flops and found["ttft_floor_ms"] is None


def test_no_data_sheet_no_mbu(make_case, copy_10_gb_per_s):
    assert decode.measure_decode(make_case(), KernelsConfig()).mbu is None


def test_the_floor_of_the_first_token(make_case, copy_10_gb_per_s, monkeypatch):
    """Two prompts' FLOP at the data sheet's rate."""
    monkeypatch.setattr(decode, "peak", lambda gpu: Peak(flops_per_s=1e12, bytes_per_s=1e12))
    case = make_case()
    found = decode.measure_decode(case, KernelsConfig())
    assert found.ttft_floor_ms == pytest.approx(1e3 * 2 * prefill_flops(case.architecture, 20) / 1e12)


def test_the_engine_is_what_is_timed(make_case, monkeypatch, copy_10_gb_per_s):
    """The timed steps continue the prompts: what the engine holds afterwards is their greedy continuation."""
    seen = []
    time_decoder = clock.time_decoder

    def spy(engine, prompts_BT, *arguments):
        times = time_decoder(engine, prompts_BT, *arguments)
        seen.append((engine, prompts_BT))
        return times

    monkeypatch.setattr(clock, "time_decoder", spy)
    decode.measure_decode(make_case(), KernelsConfig())
    ((engine, prompts_BT),) = seen
    assert engine.cache.lengths_B.tolist() == [8 + 20 + 6] * 2
    last = engine.tokens_B.clone()
    assert torch.equal(engine.generate(prompts_BT, 7)[:, -1], last)


def test_the_wanted_kernels_run(make_case, copy_10_gb_per_s):
    with pytest.raises(RuntimeError, match=r"kernels\.decode: backend 'fused' cannot run"):
        decode.measure_decode(make_case(), KernelsConfig(decode="fused"))


def test_a_peer_and_its_ratio(make_case, qwen3, copy_10_gb_per_s, monkeypatch):
    case = make_case(architecture=qwen3)
    result = decode.bench_decode(case, KernelsConfig(), "hf")
    assert result.peer.preset == "tiny" and result.peer.engine.startswith("transformers ")
    assert result.peer.ratio == pytest.approx(result.peer.tpot_ms_median / result.tpot_ms_median)
    assert result.peer.ttft_ratio == pytest.approx(result.peer.ttft_ms / result.ttft_ms)


def test_a_wrong_peer_costs_no_measurement(make_case, monkeypatch):
    monkeypatch.setattr(decode, "measure_decode", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(ValueError, match="peer 'tgi' is unknown"):
        decode.bench_decode(make_case(), KernelsConfig(), "tgi")

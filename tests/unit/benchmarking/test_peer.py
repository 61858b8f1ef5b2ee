"""The peer in transformers: the same shape, decoded rightly."""

from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from flashslm.benchmarking import peer
from flashslm.benchmarking.case import prompts
from flashslm.benchmarking.qwen3_shape import is_qwen3, qwen3_config
from flashslm.benchmarking.transformers_peer import TransformersDecoder
from flashslm.models.accounting import parameters
from flashslm.models.presets import preset
from flashslm.models.random_weights import random_model


@pytest.fixture
def case(make_case, qwen3):
    return make_case(architecture=qwen3)


@pytest.fixture
def decoder(case):
    """With weights large enough for continuations that vary."""
    torch.manual_seed(3)
    decoder = TransformersDecoder(case)
    with torch.no_grad():
        for parameter in decoder.model.parameters():
            if parameter.dim() == 2:
                parameter.mul_(20)
    return decoder


def test_it_decodes_what_transformers_generates(decoder, case):
    prompts_BT = prompts(case)
    expected = decoder.model.generate(prompts_BT, max_new_tokens=7, do_sample=False)[:, case.context :]
    for _ in range(2):  # also when it is used again
        tokens = [decoder.prefill(prompts_BT)]
        for _ in range(6):
            decoder.advance()
            tokens.append(decoder.tokens_B1[:, 0].clone())
        assert torch.equal(torch.stack(tokens, dim=1), expected)
    assert len(expected.unique()) > 4


def test_the_step_compiles_once_to_one_graph(decoder, case):
    prompts_BT = prompts(case)
    decoder.prefill(prompts_BT)
    decoder.advance()
    expected = decoder.tokens_B1.clone()
    graphs = CompileCounter()
    decoder.step = torch.compile(decoder._step, backend=graphs, dynamic=False, fullgraph=True)
    for _ in range(2):
        decoder.prefill(prompts_BT)
        decoder.advance()
        assert torch.equal(decoder.tokens_B1, expected)
        decoder.advance()
    assert graphs.frame_count == 1
    torch._dynamo.reset()


def test_it_is_the_same_shape(decoder, case, qwen3):
    ours = random_model(qwen3, "cpu", torch.float32)
    theirs = sorted(tuple(p.shape) for p in decoder.model.parameters())
    assert theirs == sorted(tuple(p.shape) for p in ours.parameters())
    assert decoder.model.config.rope_parameters["rope_theta"] == qwen3.rope_theta
    assert decoder.engine.endswith("(static cache, eager)")


@pytest.mark.parametrize("name", ["qwen3-0.6b", "qwen3-1.7b"])
def test_presets_have_all_their_parameters(name):
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(qwen3_config(preset(name)))
    assert sum(p.numel() for p in model.parameters()) == parameters(preset(name))["total"]


def test_times_and_tokens(case):
    found = peer.measure_peer(peer.Peer("hf", case))
    assert found.preset == "tiny" and found.tpot_ms_median > 0 and found.ttft_ms > 0
    assert found.tokens_per_s == pytest.approx(2 * 1000 / found.tpot_ms_mean)


def test_the_same_shape_where_there_is_one(case):
    assert peer.find_peer("hf", case) == peer.Peer("hf", case)


@pytest.mark.parametrize(("spec", "name"), [("hf", "qwen3-0.6b"), ("hf:qwen3-1.7b", "qwen3-1.7b")])
def test_another_shape_on_the_same_work(spec, name, make_case):
    library, found = peer.find_peer(spec, make_case(batch=3, context=33))
    assert library == "hf"
    assert (found.preset, found.architecture) == (name, preset(name))
    assert (found.batch, found.context, found.new_tokens, found.dtype) == (3, 33, 6, "float32")


@pytest.mark.parametrize("spec", ["tgi", "hf:nemotron-flash-1b", "vllm:gpt2"])
def test_unknown_peers(spec, make_case):
    allowed = "give hf, vllm or vllm-plugin, the first two also with :PRESET, which is qwen3-0.6b or qwen3-1.7b"
    with pytest.raises(ValueError, match=f"peer '{spec}' is unknown: {allowed}"):
        peer.find_peer(spec, make_case())


@pytest.mark.parametrize("change", [{"operators": "AFA"}, {"qk_norm": False}, {"num_meta_tokens": 4}])
def test_shapes_that_qwen3_has_not(change, qwen3):
    assert is_qwen3(qwen3)
    assert not is_qwen3(qwen3.model_copy(update=change))


def test_a_group_in_a_process_of_its_own_up_to_an_error(case):
    good, bad = peer.Peer("hf", replace(case, new_tokens=2, repeats=1)), peer.Peer("hf", replace(case, dtype="none"))
    found, error = peer.measure_apart([good])
    assert [result.preset for result in found] == ["tiny"] and error is None
    found, error = peer.measure_apart([bad])
    assert found == [] and "KeyError: 'none'" in str(error)

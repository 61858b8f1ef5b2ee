"""Whole models by fused forms: training equals the portable forms, prefill and decode equal the full forward."""

import pytest
import torch

from flashslm.config import KernelsConfig, ModelConfig
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.prefill import PREFILL_CHUNK
from flashslm.models.architecture import build_architecture
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.ops import kernels
from flashslm.ops.gradient_check import relative_error

pytestmark = pytest.mark.gpu
VOCABULARY, LENGTH = 1003, 4096
PORTABLE = KernelsConfig(
    delta_rule="chunked",
    gated_delta_rule="chunked",
    gla="chunked",
    ssd="chunked",
    causal_conv="shifted",
    attention="sdpa",
    cross_entropy="chunked",
    decode="torch",
)


@pytest.fixture(autouse=True)
def default_kernels():
    kernels.configure(KernelsConfig())
    yield
    kernels.configure(KernelsConfig())


def build(operators, dtype=torch.float32, **sizes):
    config = ModelConfig(head_dim=64, num_meta_tokens=7, window=100, **sizes)
    return HybridLM.build(build_architecture(operators, 256, config, VOCABULARY), "cuda", dtype, seed=1)


def test_weights_drawn_on_the_gpu_are_those_of_the_seed_and_spread_as_on_the_cpu():
    architecture = build_architecture("DFMFAF", 256, ModelConfig(head_dim=64, num_meta_tokens=7), VOCABULARY)
    made = [HybridLM.build(architecture, "cuda", seed=seed, init_on_device=True) for seed in (1, 1, 2)]
    first, again, other = ({name: p.detach() for name, p in model.named_parameters()} for model in made)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["embedding.weight"], other["embedding.weight"])
    for name, drawn_on_cpu in HybridLM.build(architecture, seed=1).named_parameters():
        value = first[name].cpu()
        assert value.dtype == drawn_on_cpu.dtype
        if value.numel() > 1000:
            assert value.std() == pytest.approx(drawn_on_cpu.std().item(), rel=0.05, abs=1e-6)


def loss_and_gradients(model, setting, tokens_BT, documents_BT, autocast):
    kernels.configure(setting)
    model.zero_grad()
    with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
        loss = model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:], documents_BT)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("operators", ["DFMFAF", "LFWF"])
def test_training_in_bf16_is_fp32_to_its_accuracy(operators, packed):
    model = build(operators)
    tokens_BT = torch.randint(VOCABULARY, (2, 258), device="cuda")
    documents_BT = (torch.rand(2, 257, device="cuda") < 0.03).cumsum(1) if packed else None
    expected, gradients = loss_and_gradients(model, PORTABLE, tokens_BT, documents_BT, autocast=False)
    actual, fused = loss_and_gradients(model, KernelsConfig(), tokens_BT, documents_BT, autocast=True)
    chosen = set(kernels.decisions().values())
    assert {"fla", "flash", "triton"} <= chosen
    assert actual == pytest.approx(expected, rel=2e-3)
    errors = {name: relative_error(fused[name], gradient) for name, gradient in gradients.items()}
    assert max(errors.values()) < 0.1, sorted(errors.items(), key=lambda item: -item[1])[:5]


def test_gated_delta_rule_is_not_trained_where_its_backward_is_wrong():
    from flashslm.ops.fused.linear_attention import gated_backward_problem

    model = build("GF")
    tokens_BT = torch.randint(VOCABULARY, (2, 65), device="cuda")
    if not gated_backward_problem():
        pytest.skip("this GPU and Triton train it")
    with pytest.raises(kernels.MissingKernel, match=r"cannot train here.*set it to chunked"):
        loss_and_gradients(model, KernelsConfig(), tokens_BT, None, autocast=True)
    loss, _ = loss_and_gradients(model, KernelsConfig(gated_delta_rule="chunked"), tokens_BT, None, autocast=True)
    assert 6 < loss < 8


@pytest.mark.parametrize("operators", ["DFMFAF", "GFLFWF"])
def test_prefill_and_decode_are_the_forward_in_fp32_at_every_position(operators):
    """Prefill in chunks of odd sizes, then one token at a time up to 4096, by the portable forms."""
    kernels.configure(PORTABLE)
    model = build(operators)
    tokens_BT = torch.randint(VOCABULARY, (1, LENGTH), device="cuda")
    cache = Cache.allocate(model.architecture, 1, LENGTH, "cuda")
    cache.reset_from_prefix(model.prefix_states(), model.architecture.num_meta_tokens)
    with torch.inference_mode():
        expected = model.logits(model(tokens_BT))[0]
        places, logits = [], []
        for chunk in tokens_BT[:, :130].split([1, 63, 66], dim=1):
            logits.append(model.prefill(chunk, cache)[0])
            places.append((places[-1] if places else -1) + chunk.shape[1])
        for place in range(130, LENGTH):
            logits.append(model.decode_step(tokens_BT[:, place], cache)[0])
            places.append(place)
    difference = (torch.stack(logits) - expected[places]).abs().max() / expected.std()
    assert difference < 1e-3


@pytest.mark.parametrize("chunk", [4096, 31])
def test_prefill_and_decode_are_the_forward_in_bf16_at_every_position(chunk, monkeypatch):
    """Fused prefill in chunks and the captured graph, token by token up to 4096, against the fp32 forward."""
    monkeypatch.setitem(PREFILL_CHUNK, "cuda", chunk)
    model = build("DFMFAF", torch.bfloat16)
    exact = build("DFMFAF")
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    tokens_BT = torch.randint(VOCABULARY, (1, LENGTH), device="cuda")
    engine = DecodeEngine(model, batch_size=1, max_context=LENGTH)
    assert engine.backend == "fused"
    with torch.inference_mode():
        kernels.configure(PORTABLE)
        expected = exact.logits(exact(tokens_BT))[0]
        kernels.configure(KernelsConfig())
        engine.prefill(tokens_BT[:, :65])
        actual = []
        for place in range(65, LENGTH):
            engine.tokens_B.copy_(tokens_BT[:, place])
            engine.advance()
            actual.append(engine.logits_BV[0].clone())
    errors = (torch.stack(actual) - expected[65:]).norm(dim=1) / expected[65:].norm(dim=1)
    assert errors.max() < 0.05 and errors.mean() < 0.02

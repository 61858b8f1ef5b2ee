"""Initial values, dtypes and the axes of weight normalisation."""

import math

import pytest
import torch
import torch.nn.functional as F

from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import OPERATORS


def test_initial_values_have_their_distributions(make_architecture):
    sizes = {"hidden_size": 128, "mamba_head_dim": 1, "vocab_size": 300, "num_meta_tokens": 100}
    heads = {"num_heads": 128, "num_kv_heads": 128, "head_dim": 2}
    model = HybridLM.build(make_architecture(operators="DMAFGLW", qk_norm=True, **sizes, **heads))
    for name, p in model.named_parameters():
        values = p.detach()
        if name == "meta_tokens":
            assert abs(values.std() - 1) < 0.02 and abs(values.mean()) < 0.02
        elif name.endswith("dt_bias"):
            log_dt = F.softplus(values).log()
            low, high = math.log(1e-3), math.log(1e-1)
            assert low - 1e-3 <= log_dt.min() < low + 0.2 and high - 0.2 < log_dt.max() <= high + 1e-3
            assert abs(log_dt.mean() - (low + high) / 2) < 0.25
        elif name.endswith("A_log"):
            a = values.exp()
            assert 1 - 1e-3 <= a.min() < 1.5 and 15.5 < a.max() <= 16 + 1e-3 and abs(a.mean() - 8.5) < 0.8
        elif name.endswith((".D", "norm.weight")):
            assert (values == 1).all()
        elif name.endswith("bias"):
            assert (values == 0).all()
        else:
            assert abs(values.std() - 0.02) < 0.0015 and abs(values.mean()) < 0.002, name


def test_weights_depend_on_the_seed_alone(make_architecture):
    def weights(seed: int, threads: int) -> torch.Tensor:
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        torch.manual_seed(threads)  # the global generator must not matter
        try:
            model = HybridLM.build(make_architecture(hidden_size=256), seed=seed)
        finally:
            torch.set_num_threads(before)
        return torch.cat([p.detach().flatten() for p in model.parameters()])

    assert torch.equal(weights(5, 1), weights(5, 2))
    assert not torch.equal(weights(5, 1), weights(6, 1))


def test_a_device_that_draws_the_weights_on_the_cpu_draws_the_same(make_architecture):
    models = [HybridLM.build(make_architecture(), seed=5, init_on_device=drawn) for drawn in (True, False)]
    first, second = (model.state_dict() for model in models)
    assert all(torch.equal(first[name], second[name]) for name in second)


def test_init_weights_restores_what_build_made(make_architecture):
    model = HybridLM.build(make_architecture(), seed=5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    model.init_weights(5)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("output_init", "scale"), [("normal", 1.0), ("scaled", 1 / math.sqrt(2 * len("DFMFAFGLW"))), ("zero", 0.0)]
)
def test_output_init_scales_what_writes_to_the_stream_and_nothing_else(make_architecture, output_init, scale):
    architecture = make_architecture()
    drawn = HybridLM.build(architecture, seed=5).state_dict()
    written = 0
    for name, actual in HybridLM.build(architecture, seed=5, output_init=output_init).state_dict().items():
        writes = name.endswith(("o_proj.weight", "out_proj.weight", "down_proj.weight"))
        assert torch.equal(actual, drawn[name] * scale if writes else drawn[name]), name
        written += writes
    assert written == len(architecture.operators)


def test_layers_with_zero_outputs_are_the_identity_until_they_learn(make_architecture, tokens_BT):
    model = HybridLM.build(make_architecture(), output_init="zero")
    assert torch.equal(model(tokens_BT), model.final_norm(model.embedding(tokens_BT)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(2):  # the first step moves the outputs, so that the second has a gradient for what feeds them
        optimizer.zero_grad()
        model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_bf16_model_keeps_the_decay_parameters_in_fp32(make_architecture):
    model = HybridLM.build(make_architecture(), dtype=torch.bfloat16, seed=5)
    full = HybridLM.build(make_architecture(), seed=5)
    for (name, actual), expected in zip(model.named_parameters(), full.parameters(), strict=True):
        fp32 = name.split(".")[-1] in ("A_log", "dt_bias", "D")
        assert actual.dtype == (torch.float32 if fp32 else torch.bfloat16), name
        assert torch.equal(actual, expected.to(actual.dtype))


def test_bf16_is_near_fp32(make_architecture, tokens_BT):
    """Both the bf16 model and autocast, whose fp32 parameters get fp32 gradients."""
    full = HybridLM.build(make_architecture(), seed=5)
    expected = full.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
    expected.backward()
    gradients = [p.grad.clone() for p in full.parameters()]
    low = HybridLM.build(make_architecture(), dtype=torch.bfloat16, seed=5)
    torch.testing.assert_close(low.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).float(), expected, rtol=2e-2, atol=2e-2)
    full.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = full.loss(tokens_BT[:, :-1], tokens_BT[:, 1:])
    loss.backward()
    torch.testing.assert_close(loss, expected, rtol=5e-3, atol=5e-3)
    for (name, parameter), gradient in zip(full.named_parameters(), gradients, strict=True):
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - gradient).norm() < 0.1 * gradient.norm() + 1e-6, name


def test_weight_norm_axes_name_every_matrix_on_the_stream(make_architecture):
    model = HybridLM.build(make_architecture(operators="AMDFGLW", qk_norm=True))
    assert {name: vectors.axis for name, vectors in model.unit_vectors({}).items()} == {
        "embedding.weight": 1,
        "layers.0.mixer.q_proj.weight": 1,
        "layers.0.mixer.k_proj.weight": 1,
        "layers.0.mixer.v_proj.weight": 1,
        "layers.0.mixer.o_proj.weight": 0,
        "layers.1.mixer.in_proj.weight": 1,
        "layers.1.mixer.out_proj.weight": 0,
        "layers.2.mixer.q_proj.weight": 1,
        "layers.2.mixer.k_proj.weight": 1,
        "layers.2.mixer.v_proj.weight": 1,
        "layers.2.mixer.b_proj.weight": 1,
        "layers.2.mixer.o_proj.weight": 0,
        "layers.3.ffn.gate_proj.weight": 1,
        "layers.3.ffn.up_proj.weight": 1,
        "layers.3.ffn.down_proj.weight": 0,
        "layers.4.mixer.q_proj.weight": 1,
        "layers.4.mixer.k_proj.weight": 1,
        "layers.4.mixer.v_proj.weight": 1,
        "layers.4.mixer.b_proj.weight": 1,
        "layers.4.mixer.a_proj.weight": 1,
        "layers.4.mixer.g_proj.weight": 1,
        "layers.4.mixer.o_proj.weight": 0,
        "layers.5.mixer.q_proj.weight": 1,
        "layers.5.mixer.k_proj.weight": 1,
        "layers.5.mixer.v_proj.weight": 1,
        "layers.5.mixer.g_proj.weight": 1,
        "layers.5.mixer.decay_down.weight": 1,
        "layers.5.mixer.o_proj.weight": 0,
        "layers.6.mixer.q_proj.weight": 1,
        "layers.6.mixer.k_proj.weight": 1,
        "layers.6.mixer.v_proj.weight": 1,
        "layers.6.mixer.o_proj.weight": 0,
    }


@pytest.mark.parametrize("operator", OPERATORS)
def test_normalised_vectors_have_the_hidden_size(operator, make_architecture):
    """Rows that read the stream and columns that write to it are hidden_size long; no other matrix is left out.

    GLA's decay_up lies between the two: it reads the 16 channels of decay_down.
    """
    sizes = {"hidden_size": 24, "num_heads": 2, "num_kv_heads": 1, "head_dim": 20, "mamba_state": 5}
    architecture = make_architecture(operators=operator, **sizes)
    model = HybridLM.build(architecture)
    axes, named = model.unit_vectors({}), dict(model.named_parameters())
    assert all(named[name].shape[vectors.axis] == 24 for name, vectors in axes.items())
    left_out = {name for name, p in named.items() if p.dim() == 2} - set(axes)
    assert all(name == "meta_tokens" or "conv" in name or "decay_up" in name for name in left_out)

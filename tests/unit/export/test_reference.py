"""The contract's mathematics in float64 and plain loops, against HybridLM and the exported model."""

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def rms_norm(x, weight, eps):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * weight


def conv_silu(x, weight, bias=0.0):
    """x [T, D], weight [D, 1, 4]: output t sees inputs t-3..t."""
    y = np.zeros_like(x)
    for t in range(len(x)):
        for tap in range(4):
            if t - 3 + tap >= 0:
                y[t] += weight[:, 0, tap] * x[t - 3 + tap]
    return silu(y + bias)


def rope(x, t, theta):
    """x [d] at position t: component i turns with component i + d/2."""
    half = len(x) // 2
    angle = t / theta ** (2 * np.arange(half) / len(x))
    low, high = x[:half], x[half:]
    return np.concatenate([low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)])


def attention(x, w, a):
    d, group = a.head_dim, a.num_heads // a.num_kv_heads
    q, k, v = (x @ w[f"self_attn.{n}_proj.weight"].T for n in "qkv")
    out = np.zeros((len(x), a.hidden_size))
    for head in range(a.num_heads):
        own, shared = slice(head * d, head * d + d), slice(head // group * d, head // group * d + d)
        for t in range(len(x)):
            query = rope(q[t, own], t, a.rope_theta)
            scores = np.array([query @ rope(k[s, shared], s, a.rope_theta) / np.sqrt(d) for s in range(t + 1)])
            weights = np.exp(scores - scores.max())
            out[t, own] = (weights / weights.sum()) @ v[: t + 1, shared]
    return out @ w["self_attn.o_proj.weight"].T


def deltanet(x, w, a):
    d = a.head_dim
    q, k, v = (conv_silu(x @ w[f"gla.{n}_proj.weight"].T, w[f"gla.{n}_conv1d.weight"]) for n in "qkv")
    beta = sigmoid(x @ w["gla.b_proj.weight"].T)
    out = np.zeros_like(x)
    for head in range(a.num_heads):
        own, state = slice(head * d, head * d + d), np.zeros((d, d))
        for t in range(len(x)):
            query = q[t, own] / np.sqrt((q[t, own] ** 2).sum() + 1e-6)
            key = k[t, own] / np.sqrt((k[t, own] ** 2).sum() + 1e-6)
            state = state + beta[t, head] * np.outer(key, v[t, own] - state.T @ key)
            out[t, own] = rms_norm(state.T @ query / np.sqrt(d), w["gla.o_norm.weight"], 1e-5)
    return out @ w["gla.o_proj.weight"].T


def mamba2(x, w, a):
    inner, n, p = a.mamba_inner, a.mamba_state, a.mamba_head_dim
    z, xbc, dt = np.split(x @ w["mamba.in_proj.weight"].T, [inner, 2 * inner + 2 * n], axis=1)
    u, b, c = np.split(conv_silu(xbc, w["mamba.conv1d.weight"], w["mamba.conv1d.bias"]), [inner, inner + n], axis=1)
    dt = np.log1p(np.exp(dt + w["mamba.dt_bias"]))
    decay = -np.exp(w["mamba.A_log"])
    y = np.zeros_like(u)
    for head in range(a.mamba_heads):
        own, state = slice(head * p, head * p + p), np.zeros((p, n))
        for t in range(len(x)):
            state = np.exp(dt[t, head] * decay[head]) * state + dt[t, head] * np.outer(u[t, own], b[t])
            y[t, own] = state @ c[t] + w["mamba.D"][head] * u[t, own]
    return rms_norm(y * silu(z), w["mamba.norm.weight"], 1e-5) @ w["mamba.out_proj.weight"].T


def ffn(x, w, a):
    hidden = silu(x @ w["ffn.gate_proj.weight"].T) * (x @ w["ffn.up_proj.weight"].T)
    return hidden @ w["ffn.down_proj.weight"].T


OPERATORS = {"A": attention, "D": deltanet, "M": mamba2, "F": ffn}


def reference_logits(tensors, architecture, tokens):
    """Logits [T, V] of one sequence, from the exported tensors."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    x = w["model.embed_tokens.weight"][tokens]
    if architecture.num_meta_tokens:
        x = np.concatenate([w["model.memory_tokens"], x])
    for i, letter in enumerate(architecture.operators):
        prefix = f"model.layers.{i}."
        layer = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        norm = "pre_ffn_layernorm.weight" if letter == "F" else "input_layernorm.weight"
        x = x + OPERATORS[letter](rms_norm(x, layer[norm], architecture.norm_eps), layer, architecture)
    x = rms_norm(x, w["model.final_layernorm.weight"], architecture.norm_eps)[architecture.num_meta_tokens :]
    return x @ w["model.embed_tokens.weight"].T


@pytest.mark.parametrize("changes", [{}, {"num_meta_tokens": 0}, {"operators": "AMD"}, {"operators": "FFM"}], ids=str)
def test_trained_and_exported_model_compute_the_contract(changes, architecture, make_model, export, load, tokens_BT):
    architecture = architecture.model_copy(update=changes)
    model = make_model(architecture, seed=3)
    directory = export(model, dtype="float32")
    tensors = load_file(directory / "model.safetensors")
    with torch.no_grad():
        native = model.logits(model(tokens_BT)).numpy()
        reloaded = load(directory)(tokens_BT).logits.numpy()
    for row, tokens in enumerate(tokens_BT.numpy()):
        expected = reference_logits(tensors, architecture, tokens)
        assert np.abs(expected).max() > 0.5  # the logits are not trivial
        np.testing.assert_allclose(native[row], expected, atol=1e-5)
        np.testing.assert_allclose(reloaded[row], expected, atol=1e-5)

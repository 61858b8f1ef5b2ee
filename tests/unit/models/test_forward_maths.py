"""The model against the formulas it must follow, written out once more with explicit loops in fp64."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from flashslm.ops import delta_rule as delta_rule_module


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps) * weight


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def convolve(x_TD: Tensor, weight: Tensor, bias: Tensor | float) -> Tensor:
    """silu of the causal depthwise convolution."""
    taps = weight.shape[1]
    rows = []
    for t in range(len(x_TD)):
        present = [j for j in range(taps) if t - (taps - 1 - j) >= 0]
        rows.append(sum(weight[:, j] * x_TD[t - (taps - 1 - j)] for j in present) + bias)
    return silu(torch.stack(rows))


def rope(x_TK: Tensor, theta: float) -> Tensor:
    """Rotate the complex numbers x[i] + 1j x[i + K/2] by position · theta^(-2i/K)."""
    half = x_TK.shape[1] // 2
    angles = torch.arange(len(x_TK))[:, None] / theta ** (torch.arange(half, dtype=torch.float64) / half)
    rotated = torch.complex(x_TK[:, :half], x_TK[:, half:]) * torch.polar(torch.ones_like(angles), angles)
    return torch.cat([rotated.real, rotated.imag], dim=1)


def attention(p: dict[str, Tensor], x: Tensor, a, window: int | None = None) -> Tensor:
    d, group = a.head_dim, a.num_heads // a.num_kv_heads
    theta = a.rope_theta
    if a.rope_type == "ntk":
        theta *= (2 * a.max_position_embeddings / a.original_max_position_embeddings - 1) ** (d / (d - 2))
    q, k, v = (x @ p[f"mixer.{n}_proj.weight"].T for n in "qkv")
    heads = []
    for h in range(a.num_heads):
        g = h // group
        q_h, k_h = q[:, h * d : (h + 1) * d], k[:, g * d : (g + 1) * d]
        if a.qk_norm:
            q_h, k_h = (rms_norm(y, p[f"mixer.{n}_norm.weight"], 1e-5) for n, y in (("q", q_h), ("k", k_h)))
        scores = rope(q_h, theta) @ rope(k_h, theta).T / math.sqrt(d)
        weights = torch.exp(scores)
        for t, s in itertools.product(range(len(x)), repeat=2):
            if s > t or (window and s <= t - window):
                weights[t, s] = 0
        heads.append(weights / weights.sum(-1, keepdim=True) @ v[:, g * d : (g + 1) * d])
    return torch.cat(heads, dim=1) @ p["mixer.o_proj.weight"].T


def window_attention(p: dict[str, Tensor], x: Tensor, a) -> Tensor:
    return attention(p, x, a, a.window)


def deltanet(p: dict[str, Tensor], x: Tensor, a) -> Tensor:
    return delta_heads(p, x, a) @ p["mixer.o_proj.weight"].T


def gated_deltanet(p: dict[str, Tensor], x: Tensor, a) -> Tensor:
    step = torch.log1p(torch.exp(x @ p["mixer.a_proj.weight"].T + p["mixer.dt_bias"]))
    heads = delta_heads(p, x, a, torch.exp(-torch.exp(p["mixer.A_log"]) * step))
    return (heads * silu(x @ p["mixer.g_proj.weight"].T)) @ p["mixer.o_proj.weight"].T


def delta_heads(p: dict[str, Tensor], x: Tensor, a, decay_TH: Tensor | None = None) -> Tensor:
    """The delta rule's normalised outputs, all heads side by side."""
    d = a.head_dim
    q, k, v = (convolve(x @ p[f"mixer.{n}_proj.weight"].T, p[f"mixer.{n}_conv.weight"], 0.0) for n in "qkv")
    beta = 1 / (1 + torch.exp(-x @ p["mixer.b_proj.weight"].T))
    heads = []
    for h in range(a.num_heads):
        q_h, k_h, v_h = (y[:, h * d : (h + 1) * d] for y in (q, k, v))
        q_h, k_h = (y / torch.sqrt((y * y).sum(-1, keepdim=True) + 1e-6) for y in (q_h, k_h))
        state, rows = x.new_zeros(d, d), []
        for t in range(len(x)):
            if decay_TH is not None:
                state = decay_TH[t, h] * state
            state = state + beta[t, h] * torch.outer(k_h[t], v_h[t] - state.T @ k_h[t])
            rows.append(state.T @ q_h[t] / math.sqrt(d))
        heads.append(rms_norm(torch.stack(rows), p["mixer.o_norm.weight"], 1e-5))
    return torch.cat(heads, dim=1)


def gla(p: dict[str, Tensor], x: Tensor, a) -> Tensor:
    d, key = a.head_dim, a.head_dim // 2
    q, k, v = (x @ p[f"mixer.{n}_proj.weight"].T for n in "qkv")
    gate = x @ p["mixer.decay_down.weight"].T @ p["mixer.decay_up.weight"].T + p["mixer.decay_up.bias"]
    decay = (1 / (1 + torch.exp(-gate))) ** (1 / 16)
    heads = []
    for h in range(a.num_heads):
        q_h, k_h, decay_h = (y[:, h * key : (h + 1) * key] for y in (q, k, decay))
        state, rows = x.new_zeros(key, d), []
        for t in range(len(x)):
            state = decay_h[t][:, None] * state + torch.outer(k_h[t], v[t, h * d : (h + 1) * d])
            rows.append(state.T @ q_h[t] / math.sqrt(key))
        heads.append(rms_norm(torch.stack(rows), p["mixer.o_norm.weight"], 1e-5))
    return (torch.cat(heads, dim=1) * silu(x @ p["mixer.g_proj.weight"].T)) @ p["mixer.o_proj.weight"].T


def mamba2(p: dict[str, Tensor], x: Tensor, a) -> Tensor:
    inner, n, head = a.mamba_inner, a.mamba_state, a.mamba_head_dim
    z, xbc, dt = (x @ p["mixer.in_proj.weight"].T).split([inner, inner + 2 * n, a.mamba_heads], dim=1)
    u, b, c = convolve(xbc, p["mixer.conv.weight"], p["mixer.conv.bias"]).split([inner, n, n], dim=1)
    dt = torch.log1p(torch.exp(dt + p["mixer.dt_bias"]))
    heads = []
    for h in range(a.mamba_heads):
        u_h, state, rows = u[:, h * head : (h + 1) * head], x.new_zeros(head, n), []
        for t in range(len(x)):
            decay = torch.exp(-torch.exp(p["mixer.A_log"][h]) * dt[t, h])
            state = decay * state + dt[t, h] * torch.outer(u_h[t], b[t])
            rows.append(state @ c[t] + p["mixer.D"][h] * u_h[t])
        heads.append(torch.stack(rows))
    y = rms_norm(torch.cat(heads, dim=1) * silu(z), p["mixer.norm.weight"], 1e-5)
    return y @ p["mixer.out_proj.weight"].T


def ffn(p: dict[str, Tensor], x: Tensor, a) -> Tensor:
    hidden = silu(x @ p["ffn.gate_proj.weight"].T) * (x @ p["ffn.up_proj.weight"].T)
    return hidden @ p["ffn.down_proj.weight"].T


FORMULAS = {
    "A": attention,
    "D": deltanet,
    "M": mamba2,
    "F": ffn,
    "G": gated_deltanet,
    "L": gla,
    "W": window_attention,
}


def reference_logits(model, tokens_T: Tensor) -> Tensor:
    """One sequence, the meta tokens literally in front of it."""
    a, p = model.architecture, {name: value.detach() for name, value in model.named_parameters()}
    x = p["embedding.weight"][tokens_T]
    if a.num_meta_tokens:
        x = torch.cat([p["meta_tokens"], x])
    for i, operator in enumerate(a.operators):
        prefix = f"layers.{i}."
        layer = {name.removeprefix(prefix): value for name, value in p.items() if name.startswith(prefix)}
        x = x + FORMULAS[operator](layer, rms_norm(x, layer["norm.weight"], a.norm_eps), a)
    x = rms_norm(x, p["final_norm.weight"], a.norm_eps)
    return x[a.num_meta_tokens :] @ p["embedding.weight"].T


# With weights and activations this small every eps is felt: another one in any norm would fail.
@pytest.mark.parametrize("scale", [6.0, 0.5], ids=["large-weights", "small-weights"])
@pytest.mark.parametrize("operators", ["A", "D", "M", "F", "G", "L", "W", "DFMFAFGLW"])
@pytest.mark.parametrize("meta", [0, 6])
def test_forward_follows_the_formulas(operators, meta, scale, make_model, tokens_BT):
    model = make_model(scale=scale, operators=operators, num_meta_tokens=meta, norm_eps=1e-3)
    with torch.no_grad():
        logits_BTV = model.logits(model(tokens_BT))
    for logits_TV, tokens_T in zip(logits_BTV, tokens_BT, strict=True):
        # fp32 rotary angles are the loosest part.
        torch.testing.assert_close(logits_TV, reference_logits(model, tokens_T), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"head_dim": 12},
        {"qk_norm": True},
        {"qk_norm": True, "head_dim": 6, "num_kv_heads": 1},
        {"rope_type": "ntk", "original_max_position_embeddings": 40},
    ],
)
def test_forward_follows_the_formulas_at_other_sizes(changes, make_model, tokens_BT):
    model = make_model(norm_eps=1e-3, **changes)
    with torch.no_grad():
        logits_TV = model.logits(model(tokens_BT[:1]))[0]
    torch.testing.assert_close(logits_TV, reference_logits(model, tokens_BT[0]), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "module, eps",
    [
        ("0.mixer.o_norm", 1e-5),
        ("2.mixer.o_norm", 1e-5),
        ("3.mixer.o_norm", 1e-5),
        ("mixer.q_norm", 1e-5),
        ("mixer.k_norm", 1e-5),
        ("mixer.norm", 1e-5),
        ("layers.0.norm", 1e-3),
        ("layers.1.norm", 1e-3),
        ("final_norm", 1e-3),
    ],
)
def test_every_norm_eps_is_felt(module, eps, make_model, tokens_BT):
    """The comparison above notices a wrong eps: doubling one changes the logits by far more than its tolerance."""
    model = make_model(scale=0.5, operators="DMGLA", norm_eps=1e-3, qk_norm=True)
    before = model.logits(model(tokens_BT))
    changed = [m for name, m in model.named_modules() if name.endswith(module)]
    assert [norm.eps for norm in changed] == [eps]
    changed[0].eps *= 2
    assert (model.logits(model(tokens_BT)) - before).abs().max() > 1e-5


def test_the_l2_eps_is_felt(make_model, tokens_BT, monkeypatch):
    model = make_model(scale=0.5, operators="DM", norm_eps=1e-3)
    before = model.logits(model(tokens_BT))
    monkeypatch.setattr(delta_rule_module, "L2_EPS", 2e-6)
    assert (model.logits(model(tokens_BT)) - before).abs().max() > 1e-5

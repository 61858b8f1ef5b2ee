"""The contract's mathematics in float64 and plain loops: logits from config.json and its tensors, nothing else."""

import numpy as np

INNER_EPS = 1e-5  # query-key norm, DeltaNet's output norm, Mamba's norm


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


def rotary_theta(config, d):
    if config["rope_type"] in (None, "default"):
        return config["rope_theta"]
    assert config["rope_type"] == "ntk"
    stretch = 2 * config["max_position_embeddings"] / config["orig_max_position_embeddings"] - 1
    return config["rope_theta"] * stretch ** (d / (d - 2))


def rope(x, t, theta):
    """x [d] at position t: component i turns with component i + d/2."""
    half = len(x) // 2
    angle = t / theta ** (2 * np.arange(half) / len(x))
    low, high = x[:half], x[half:]
    return np.concatenate([low * np.cos(angle) - high * np.sin(angle), high * np.cos(angle) + low * np.sin(angle)])


def attention(x, w, config):
    heads = config["num_attention_heads"]
    d, group = config["hidden_size"] // heads, heads // config["num_key_value_heads"]
    q, k, v = (x @ w[f"self_attn.{n}_proj.weight"].T for n in "qkv")
    theta = rotary_theta(config, d)

    def placed(row, t, name):
        if config["kq_norm"] == "rms":
            row = rms_norm(row, w[f"self_attn.{name}_norm.weight"], INNER_EPS)
        return rope(row, t, theta)

    out = np.zeros((len(x), heads * d))
    for head in range(heads):
        own, shared = slice(head * d, head * d + d), slice(head // group * d, head // group * d + d)
        keys = np.array([placed(k[s, shared], s, "k") for s in range(len(x))])
        for t in range(len(x)):
            scores = keys[: t + 1] @ placed(q[t, own], t, "q") / np.sqrt(d)
            weights = np.exp(scores - scores.max())
            out[t, own] = (weights / weights.sum()) @ v[: t + 1, shared]
    return out @ w["self_attn.o_proj.weight"].T


def deltanet(x, w, config):
    heads = config["num_attention_heads"]
    d = config["hidden_size"] // heads
    q, k, v = (conv_silu(x @ w[f"gla.{n}_proj.weight"].T, w[f"gla.{n}_conv1d.weight"]) for n in "qkv")
    beta = sigmoid(x @ w["gla.b_proj.weight"].T)
    out = np.zeros_like(x)
    for head in range(heads):
        own, state = slice(head * d, head * d + d), np.zeros((d, d))
        for t in range(len(x)):
            query = q[t, own] / np.sqrt((q[t, own] ** 2).sum() + 1e-6)
            key = k[t, own] / np.sqrt((k[t, own] ** 2).sum() + 1e-6)
            state = state + beta[t, head] * np.outer(key, v[t, own] - state.T @ key)
            out[t, own] = rms_norm(state.T @ query / np.sqrt(d), w["gla.o_norm.weight"], INNER_EPS)
    return out @ w["gla.o_proj.weight"].T


def mamba2(x, w, config):
    inner, n, p = config["mamba_expand"] * config["hidden_size"], config["mamba_d_state"], config["mamba2_headdim"]
    z, xbc, dt = np.split(x @ w["mamba.in_proj.weight"].T, [inner, 2 * inner + 2 * n], axis=1)
    u, b, c = np.split(conv_silu(xbc, w["mamba.conv1d.weight"], w["mamba.conv1d.bias"]), [inner, inner + n], axis=1)
    dt = np.log1p(np.exp(dt + w["mamba.dt_bias"]))
    decay = -np.exp(w["mamba.A_log"])
    y = np.zeros_like(u)
    for head in range(inner // p):
        own, state = slice(head * p, head * p + p), np.zeros((p, n))
        for t in range(len(x)):
            state = np.exp(dt[t, head] * decay[head]) * state + dt[t, head] * np.outer(u[t, own], b[t])
            y[t, own] = state @ c[t] + w["mamba.D"][head] * u[t, own]
    return rms_norm(y * silu(z), w["mamba.norm.weight"], INNER_EPS) @ w["mamba.out_proj.weight"].T


def ffn(x, w, config):
    assert config["mlp_hidden_act"] == "silu"
    hidden = silu(x @ w["ffn.gate_proj.weight"].T) * (x @ w["ffn.up_proj.weight"].T)
    return hidden @ w["ffn.down_proj.weight"].T


OPERATORS = {"a": attention, "deltanet": deltanet, "m2": mamba2, "f": ffn}


def reference_logits(tensors, config, tokens):
    """Logits [T, vocabulary] of one sequence [T]."""
    w = {name: tensor.astype(np.float64) for name, tensor in tensors.items()}
    memory, eps = config["num_memory_tokens"], config["rms_norm_eps"]
    x = w["model.embed_tokens.weight"][tokens]
    if memory:
        x = np.concatenate([w["model.memory_tokens"], x])
    for i, kind in enumerate(config["layer_types"]):
        prefix = f"model.layers.{i}."
        layer = {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}
        norm = layer["pre_ffn_layernorm.weight" if kind == "f" else "input_layernorm.weight"]
        x = x + OPERATORS[kind](rms_norm(x, norm, eps), layer, config)
    x = rms_norm(x, w["model.final_layernorm.weight"], eps)[memory:]
    return x @ w["model.embed_tokens.weight"].T  # the head is tied

# mypy: ignore-errors
"""Hybrid language model of attention, DeltaNet, Mamba-2 and FFN layers; needs torch and transformers only.

Shapes: B batch, T tokens, S keys, D hidden, H heads, K key size, V value size, P Mamba head size, N state, C chunk.

Padding (left or right) is exact: each row's tokens are moved in front of its padding, padding changes no state, and the
rows are moved back at the end. The learned memory tokens stand before the first token of every sequence.

Logits are the tied head's product with the final hidden state. They are not divided by the norms of the head's rows:
TensorRT-LLM does not divide either, and with unit-norm rows (weight-normalised training) both are the same.
"""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from .configuration_nemotron_flash import NemotronFlashConfig

INNER_EPS = 1e-5  # the norms inside attention, DeltaNet and Mamba, whatever rms_norm_eps is
L2_EPS = 1e-6
DELTA_CHUNK = 64
SSD_CHUNK = 128
SUPPORTED = {
    "attn_hidden_size": (-1,),
    "kq_head_dim": (-1,),
    "v_head_dim": (-1,),
    "kq_norm": ("none", "rms"),
    "rope": (True,),
    "rope_type": (None, "default", "ntk"),
    "sliding_window": (None,),
    "intermediate_size": (0,),
    "mlp_hidden_act": ("silu",),
    "tie_word_embeddings": (True,),
}


class NemotronFlashCache:
    """What generation carries: per layer the keys and values, or the convolution and recurrent states.

    `keys_valid_BS` marks the key positions that hold a token (not padding); `seen_tokens` counts input columns.
    """

    is_compileable = False

    def __init__(self):
        self.layers = {}
        self.keys_valid_BS = None
        self.seen_tokens = 0

    def get_seq_length(self, layer_idx=0):
        return self.seen_tokens

    def reorder_cache(self, beam_idx):
        self.keys_valid_BS = self.keys_valid_BS[beam_idx]
        self.layers = {i: tuple(state[beam_idx] for state in states) for i, states in self.layers.items()}


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        scale = torch.rsqrt(x.float().square().mean(-1, keepdim=True) + self.eps)
        return (x.float() * scale * self.weight.float()).to(x.dtype)


def causal_conv(x_BTD, conv, history_BTD, mask_BT):
    """Depthwise causal convolution and SiLU; returns it and the last inputs that are tokens (the next history)."""
    width = conv.kernel_size[0] - 1
    if history_BTD is None:
        history_BTD = x_BTD.new_zeros(x_BTD.shape[0], width, x_BTD.shape[2])
    inputs = torch.cat([history_BTD, x_BTD], dim=1)
    y_BTD = F.silu(conv(inputs.transpose(1, 2)).transpose(1, 2))
    last = mask_BT.sum(1)[:, None] + torch.arange(width, device=x_BTD.device)
    return y_BTD, inputs.gather(1, last[..., None].expand(-1, -1, inputs.shape[2]))


def chunks(x, size):
    """[B, T, ...] -> [B, n, size, ...], zeros behind."""
    x = torch.cat([x, x.new_zeros(x.shape[0], -x.shape[1] % size, *x.shape[2:])], dim=1)
    return x.unflatten(1, (-1, size))


def delta_rule(q_BTHK, k_BTHK, v_BTHV, beta_BTH, state_BHKV):
    """S <- S + beta k (v - S^T k)^T, o = S^T q, in chunks: within one, the corrections solve a triangular system.

    A chunk of one token is the recurrence. beta = 0 leaves the state as it is.
    """
    T, size = q_BTHK.shape[1], min(q_BTHK.shape[1], DELTA_CHUNK)
    q, k, v = (chunks(x, size).transpose(2, 3) for x in (q_BTHK, k_BTHK, v_BTHV))  # [B, n, H, C, K]
    beta = chunks(beta_BTH, size).transpose(2, 3)[..., None]
    system = (beta * k) @ k.mT  # the solver reads its strict lower triangle
    solved = torch.linalg.solve_triangular(system, torch.cat([beta * v, beta * k], -1), upper=False, unitriangular=True)
    values, keys = solved.split([v.shape[-1], k.shape[-1]], dim=-1)
    scores = (q @ k.mT).tril()
    outputs = []
    for i in range(q.shape[1]):
        update = values[:, i] - keys[:, i] @ state_BHKV
        outputs.append(q[:, i] @ state_BHKV + scores[:, i] @ update)
        state_BHKV = state_BHKV + k[:, i].mT @ update
    return torch.stack(outputs, 1).transpose(2, 3).flatten(1, 2)[:, :T], state_BHKV


def ssd(x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, state_BHPN):
    """S <- exp(dt a) S + dt x b^T, y = S c (Mamba-2, one group), in chunks; dt = 0 leaves the state as it is."""
    T, size = x_BTHP.shape[1], min(x_BTHP.shape[1], SSD_CHUNK)
    x, b, c = chunks(x_BTHP * dt_BTH[..., None], size), chunks(b_BTN, size), chunks(c_BTN, size)
    log_decay = chunks(dt_BTH * a_H, size).cumsum(2).transpose(2, 3)  # [B, n, H, C]
    future = torch.ones(size, size, dtype=torch.bool, device=x.device).triu(1)
    decay = (log_decay[..., :, None] - log_decay[..., None, :]).masked_fill(future, -torch.inf).exp()
    y = torch.einsum("gntm,gnsm,gnhts,gnshp->gnthp", c, b, decay, x)
    added = torch.einsum("gnsm,gnhs,gnshp->gnhpm", b, (log_decay[..., -1:] - log_decay).exp(), x)
    carried = []
    for i in range(x.shape[1]):
        carried.append(torch.einsum("gtm,ght,ghpm->gthp", c[:, i], log_decay[:, i].exp(), state_BHPN))
        state_BHPN = log_decay[:, i, :, -1].exp()[..., None, None] * state_BHPN + added[:, i]
    return (y + torch.stack(carried, 1)).flatten(1, 2)[:, :T], state_BHPN


def rotary_theta(config):
    """The base of the rotary angles; "ntk" raises it once, for the longest context."""
    if config.rope_type != "ntk":
        return config.rope_theta
    head_dim = config.hidden_size // config.num_attention_heads
    stretch = 2 * config.max_position_embeddings / config.orig_max_position_embeddings - 1
    return config.rope_theta * stretch ** (head_dim / (head_dim - 2))


def rotate(x_BHTK, cos_BTK, sin_BTK):
    """Rotary embedding, half-split, in float32."""
    low, high = x_BHTK.float().chunk(2, dim=-1)
    rotated = x_BHTK.float() * cos_BTK[:, None] + torch.cat([-high, low], -1) * sin_BTK[:, None]
    return rotated.to(x_BHTK.dtype)


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        h, self.num_heads, self.num_kv_heads = (
            config.hidden_size,
            config.num_attention_heads,
            config.num_key_value_heads,
        )
        self.head_dim = h // self.num_heads
        self.q_proj = nn.Linear(h, h, bias=False)
        self.k_proj = nn.Linear(h, self.num_kv_heads * self.head_dim, bias=False)
        self.v_proj = nn.Linear(h, self.num_kv_heads * self.head_dim, bias=False)
        self.o_proj = nn.Linear(h, h, bias=False)
        normed = config.kq_norm == "rms"
        self.q_norm, self.k_norm = (RMSNorm(self.head_dim, INNER_EPS) if normed else nn.Identity() for _ in "qk")

    def forward(self, x_BTD, states, batch):
        q, k, v = (
            projection(x_BTD).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        q, k = self.q_norm(q), self.k_norm(k)
        q, k = rotate(q, *batch["rotary"]), rotate(k, *batch["rotary"])
        if states is not None:
            k, v = torch.cat([states[0], k], dim=2), torch.cat([states[1], v], dim=2)
        group = self.num_heads // self.num_kv_heads
        keys, values = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        o = F.scaled_dot_product_attention(q, keys, values, attn_mask=batch["attends_B1TS"])
        return self.o_proj(o.transpose(1, 2).flatten(2)), (k, v)


class DeltaNet(nn.Module):
    def __init__(self, config):
        super().__init__()
        h, self.num_heads = config.hidden_size, config.num_attention_heads
        self.head_dim = h // self.num_heads
        for name in "qkv":
            setattr(self, f"{name}_proj", nn.Linear(h, h, bias=False))
            setattr(self, f"{name}_conv1d", nn.Conv1d(h, h, 4, groups=h, bias=False))
        self.b_proj = nn.Linear(h, self.num_heads, bias=False)
        self.o_norm = RMSNorm(self.head_dim, INNER_EPS)
        self.o_proj = nn.Linear(h, h, bias=False)

    def forward(self, x_BTD, states, batch):
        mask_BT, heads = batch["mask_BT"], (self.num_heads, self.head_dim)
        histories = states or (None, None, None, x_BTD.new_zeros(len(x_BTD), *heads, heads[1], dtype=torch.float32))
        q, q_history = causal_conv(self.q_proj(x_BTD), self.q_conv1d, histories[0], mask_BT)
        k, k_history = causal_conv(self.k_proj(x_BTD), self.k_conv1d, histories[1], mask_BT)
        v, v_history = causal_conv(self.v_proj(x_BTD), self.v_conv1d, histories[2], mask_BT)
        q, k, v = (x.unflatten(-1, heads).float() for x in (q, k, v))
        q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS) for x in (q, k))
        beta_BTH = self.b_proj(x_BTD).float().sigmoid() * mask_BT[..., None]
        o, state = delta_rule(q * self.head_dim**-0.5, k, v, beta_BTH, histories[3])
        o = self.o_norm(o.to(x_BTD.dtype)).flatten(2)
        return self.o_proj(o), (q_history, k_history, v_history, state)


class Mamba2(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.inner, self.state_size = config.mamba_expand * config.hidden_size, config.mamba_d_state
        self.head_dim, self.num_heads = config.mamba2_headdim, self.inner // config.mamba2_headdim
        channels = self.inner + 2 * self.state_size
        self.in_proj = nn.Linear(config.hidden_size, self.inner + channels + self.num_heads, bias=False)
        self.conv1d = nn.Conv1d(channels, channels, config.mamba_d_conv, groups=channels)
        self.dt_bias = nn.Parameter(torch.zeros(self.num_heads))
        self.A_log = nn.Parameter(torch.zeros(self.num_heads))
        self.D = nn.Parameter(torch.ones(self.num_heads))
        self.norm = RMSNorm(self.inner, INNER_EPS)
        self.out_proj = nn.Linear(self.inner, config.hidden_size, bias=False)

    def forward(self, x_BTD, states, batch):
        heads = (self.num_heads, self.head_dim)
        states = states or (None, x_BTD.new_zeros(len(x_BTD), *heads, self.state_size, dtype=torch.float32))
        channels = self.inner + 2 * self.state_size
        z, xbc, dt = self.in_proj(x_BTD).split([self.inner, channels, self.num_heads], dim=-1)
        xbc, history = causal_conv(xbc, self.conv1d, states[0], batch["mask_BT"])
        x, b, c = xbc.float().split([self.inner, self.state_size, self.state_size], dim=-1)
        x = x.unflatten(-1, heads)
        dt = F.softplus(dt.float() + self.dt_bias.float()) * batch["mask_BT"][..., None]
        y, state = ssd(x, dt, -self.A_log.float().exp(), b, c, states[1])
        y = (y + self.D.float()[:, None] * x).flatten(2) * F.silu(z.float())
        return self.out_proj(self.norm(y).to(x_BTD.dtype)), (history, state)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        size = int(config.ffn_expand_ratio * config.hidden_size) // 128 * 128
        self.gate_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=False)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=False)

    def forward(self, x_BTD, states, batch):
        return self.down_proj(F.silu(self.gate_proj(x_BTD)) * self.up_proj(x_BTD)), ()


# Layer type -> operator, and the names its norm and it have among the tensors.
OPERATORS = {
    "a": (Attention, "input_layernorm", "self_attn"),
    "deltanet": (DeltaNet, "input_layernorm", "gla"),
    "m": (Mamba2, "input_layernorm", "mamba"),
    "m2": (Mamba2, "input_layernorm", "mamba"),
    "f": (FeedForward, "pre_ffn_layernorm", "ffn"),
}


class NemotronFlashLayer(nn.Module):
    """x + operator(norm(x))."""

    def __init__(self, config, layer_type):
        super().__init__()
        operator, self.norm_name, self.operator_name = OPERATORS[layer_type]
        setattr(self, self.norm_name, RMSNorm(config.hidden_size, config.rms_norm_eps))
        setattr(self, self.operator_name, operator(config))

    def forward(self, x_BTD, states, batch):
        normed = getattr(self, self.norm_name)(x_BTD)
        y_BTD, states = getattr(self, self.operator_name)(normed, states, batch)
        return x_BTD + y_BTD, states


class NemotronFlashPreTrainedModel(PreTrainedModel):
    config_class = NemotronFlashConfig
    base_model_prefix = "model"
    _no_split_modules = ("NemotronFlashLayer",)
    _supports_sdpa = True
    _is_stateful = True  # a recurrent state cannot be cut back: no assisted decoding


class NemotronFlashModel(NemotronFlashPreTrainedModel):
    def __init__(self, config):
        super().__init__(config)
        for name, allowed in SUPPORTED.items():
            if getattr(config, name) not in allowed:
                raise ValueError(f"{name} is {getattr(config, name)!r}: this model supports {allowed}")
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.memory_tokens = None
        if config.num_memory_tokens:
            self.memory_tokens = nn.Parameter(torch.zeros(config.num_memory_tokens, config.hidden_size))
        self.layers = nn.ModuleList(
            NemotronFlashLayer(config, layer_type) for layer_type in config.layer_types[: config.num_hidden_layers]
        )
        self.final_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, past_key_values=None, use_cache=False):
        """Hidden states [B, T, D] of the text tokens; `attention_mask` [B, >= T] is 0 at padding."""
        cache = NemotronFlashCache() if past_key_values is None else past_key_values
        x, mask = self._embed(input_ids, attention_mask, first=cache.keys_valid_BS is None)
        order = torch.argsort(~mask, dim=1, stable=True)[..., None].expand(-1, -1, x.shape[2])
        padded = not bool(mask.all())
        if padded:
            x, mask = x.gather(1, order), mask.gather(1, order[..., 0])
        batch = self._batch(x, mask, cache)
        for index, layer in enumerate(self.layers):
            x, states = layer(x, cache.layers.get(index), batch)
            if use_cache:
                cache.layers[index] = states
        if use_cache:
            cache.keys_valid_BS = batch["keys_valid_BS"]
            cache.seen_tokens += input_ids.shape[1]
        if padded:
            x = torch.zeros_like(x).scatter(1, order, x)
        hidden_states = self.final_layernorm(x[:, -input_ids.shape[1] :])
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=cache if use_cache else None)

    def _embed(self, input_ids, attention_mask, first):
        """Embeddings and token mask, with the memory tokens in front when the sequences begin."""
        x = self.embed_tokens(input_ids)
        mask = torch.ones_like(input_ids, dtype=torch.bool)
        if attention_mask is not None:
            mask = attention_mask[:, -input_ids.shape[1] :].bool()
        if first and self.memory_tokens is not None:
            memory = self.memory_tokens.to(x.dtype).expand(len(x), -1, -1)
            x = torch.cat([memory, x], dim=1)
            mask = torch.cat([mask.new_ones(memory.shape[:2]), mask], dim=1)
        return x, mask

    def _batch(self, x, mask_BT, cache):
        """What all layers share: token mask, attention mask and rotary angles (tokens stand before padding)."""
        past = cache.keys_valid_BS
        keys_valid = mask_BT if past is None else torch.cat([past, mask_BT], dim=1)
        T, S = mask_BT.shape[1], keys_valid.shape[1]
        causal = torch.ones(T, S, dtype=torch.bool, device=x.device).tril(S - T)
        first = 0 if past is None else past.sum(1, keepdim=True)
        positions = first + torch.arange(T, device=x.device)[None]
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        exponents = torch.arange(0, head_dim, 2, device=x.device, dtype=torch.float32) / head_dim
        angles = positions[..., None].float() * rotary_theta(self.config) ** -exponents
        angles = torch.cat([angles, angles], dim=-1)
        return {
            "mask_BT": mask_BT,
            "keys_valid_BS": keys_valid,
            "attends_B1TS": (keys_valid[:, None] & causal)[:, None],
            "rotary": (angles.cos(), angles.sin()),
        }


class NemotronFlashForCausalLM(NemotronFlashPreTrainedModel, GenerationMixin):
    def __init__(self, config):
        super().__init__(config)
        self.model = NemotronFlashModel(config)
        self.post_init()

    def forward(
        self,
        input_ids,
        attention_mask=None,
        past_key_values=None,
        labels=None,
        use_cache=False,
        logits_to_keep=0,
        **kwargs,
    ):
        """Logits [B, T, vocabulary]; with `labels` (shifted inside, -100 ignored) also the mean loss in nats."""
        outputs = self.model(input_ids, attention_mask, past_key_values, use_cache)
        logits = F.linear(outputs.last_hidden_state[:, -logits_to_keep:], self.model.embed_tokens.weight)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=outputs.past_key_values)

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **kwargs):
        seen = 0 if past_key_values is None else past_key_values.get_seq_length()
        return {
            "input_ids": input_ids[:, seen:],
            "attention_mask": attention_mask,
            "past_key_values": past_key_values,
            "use_cache": kwargs.get("use_cache", True),
            "logits_to_keep": 1,
        }

    @classmethod
    def _supports_default_dynamic_cache(cls):
        return False  # forward makes its own NemotronFlashCache

# mypy: ignore-errors
"""Configuration of a Nemotron-Flash style hybrid language model (transformers 4.57 and 5.x)."""

from transformers import PretrainedConfig

FIELDS = {
    "vocab_size": 32000,
    "hidden_size": 512,
    "num_hidden_layers": 0,
    "layer_types": (),  # "deltanet", "m2", "a" and "f", one entry a layer
    "num_attention_heads": 8,  # attention and DeltaNet
    "num_key_value_heads": 2,
    "attn_hidden_size": -1,
    "kq_head_dim": -1,
    "v_head_dim": -1,
    "kq_norm": "none",
    "rope": True,
    "rope_theta": 10000.0,
    "rope_type": "default",
    "max_position_embeddings": 4096,  # memory tokens included
    "orig_max_position_embeddings": None,
    "sliding_window": None,
    "global_attn_idx": (),
    "attention_dropout": 0.0,
    "intermediate_size": 0,
    "ffn_expand_ratio": 3.0,
    "mlp_hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "initializer_range": 0.02,
    "mamba_d_state": 128,
    "mamba_d_conv": 4,
    "mamba2_headdim": 64,
    "mamba_expand": 2,
    "num_memory_tokens": 0,
    "tie_word_embeddings": True,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}


class NemotronFlashConfig(PretrainedConfig):
    """Fields of config.json; see the model's README."""

    model_type = "nemotron_flash"

    def __init__(self, **kwargs):
        fields = {name: kwargs.pop(name, default) for name, default in FIELDS.items()}
        super().__init__(**kwargs)
        # After super().__init__(): transformers 5 refuses there every layer type that it does not know itself.
        self.layer_types = list(fields.pop("layer_types"))
        self.global_attn_idx = list(fields.pop("global_attn_idx"))
        for name, value in fields.items():
            setattr(self, name, value)

    @property
    def n_positions(self):
        """Text tokens that fit; lm-evaluation-harness takes its length from here."""
        return self.max_position_embeddings - self.num_memory_tokens

    def validate(self):
        """Accept the layer types: transformers 5 calls this when it saves, and knows only its own."""

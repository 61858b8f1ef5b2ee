"""Architectures of published models by name: the ones this project follows, and peers to compare speed with. No torch.

Operators and sizes are those of the releases (Nemotron-Flash: arXiv 2511.18890, table 11 and section 4). What these
leave open, or what makes no difference to speed, is this project's default: the constants of Nemotron-Flash's rotary
embedding are not published, and Qwen3 normalises q and k with an eps of 1e-6 where ours is 1e-5. So these are shapes,
and not places to load those models' weights into.
"""

import math

from flashslm.config import ModelConfig
from flashslm.models.architecture import Architecture, build_architecture


def preset(name: str) -> Architecture:
    """The architecture of this name; ValueError names those there are."""
    if name not in PRESETS:
        raise ValueError(f"preset '{name}' is unknown: choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _nemotron_flash(operators: str, width: int) -> Architecture:
    sizes = ModelConfig(head_dim=128, kv_group=4, ffn_ratio=3, mamba_state=128, mamba_head_dim=64, num_meta_tokens=256)
    return build_architecture(operators, width, sizes, vocab_size=131_072)


def _qwen3(width: int, ffn_size: int) -> Architecture:
    unused = ModelConfig()
    return Architecture(
        operators="(AF)x28",
        hidden_size=width,
        num_heads=16,
        num_kv_heads=8,
        head_dim=128,
        ffn_size=ffn_size,
        vocab_size=151_936,
        num_meta_tokens=0,
        max_position_embeddings=40_960,
        rope_theta=1e6,
        norm_eps=1e-6,
        qk_norm=True,
        mamba_state=unused.mamba_state,
        mamba_head_dim=unused.mamba_head_dim,
        mamba_expand=unused.mamba_expand,
    )


def _deltanet() -> Architecture:
    """967M parameters in 14 blocks of DeltaNet and FFN: a shape that flash-linear-attention's DeltaNet has too."""
    sizes = ModelConfig(head_dim=128, ffn_ratio=2.625, num_meta_tokens=0)
    return build_architecture("(DF)x14", 2048, sizes, vocab_size=131_072)


def at_width(architecture: Architecture, width: int) -> Architecture:
    """The same operators at another hidden size: a head keeps its size, their numbers and the FFN grow with the width.

    ValueError where one of these would not be whole.
    """
    scaled = {"hidden_size": width}
    for name in ("num_heads", "num_kv_heads", "ffn_size"):
        scaled[name], rest = divmod(getattr(architecture, name) * width, architecture.hidden_size)
        if rest:
            step = architecture.hidden_size // math.gcd(architecture.hidden_size, architecture.num_kv_heads)
            raise ValueError(f"width {width} leaves {name} no whole number: take a multiple of {step}")
    return Architecture.model_validate(architecture.model_dump() | scaled)


PRESETS = {
    "nemotron-flash-1b": _nemotron_flash("(DFMF AFMF)x2 | (DFMF)x2", 2048),
    "nemotron-flash-3b": _nemotron_flash("(DFMF AFMF)x3 | (DFMF)x3", 3072),
    "deltanet-1b": _deltanet(),
    "qwen3-0.6b": _qwen3(1024, 3072),
    "qwen3-1.7b": _qwen3(2048, 6144),
}

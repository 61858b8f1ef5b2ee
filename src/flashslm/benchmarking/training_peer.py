"""The same training step in transformers (Qwen3's shapes) or flash-linear-attention (DeltaNet's), at its best here.

fp32 weights and moments under bf16 autocast, fused AdamW, and flash-linear-attention's fused head and loss in both.
transformers is compiled block by block; compiled as a whole it would build a dense mask.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from flashslm.benchmarking.qwen3_shape import is_qwen3, qwen3_config
from flashslm.benchmarking.training_steps import Trained, TrainingCase
from flashslm.config import TrainingConfig
from flashslm.data.loader import Batch

Library = Literal["transformers", "fla"]


def build_peer(case: TrainingCase, library: Library) -> tuple[str, Trained]:
    """The library with its version and settings, and its step. ValueError where it has no such shape."""
    engine, model, hidden_states = (_qwen3 if library == "transformers" else _deltanet)(case)
    from fla.modules import FusedLinearCrossEntropyLoss

    config = TrainingConfig()
    optimizer = torch.optim.AdamW(
        model.parameters(), config.learning_rate, (config.beta1, config.beta2), weight_decay=0.0, fused=True
    )
    criterion = FusedLinearCrossEntropyLoss(accumulate_grad_in_fp32=False)
    head = model.get_output_embeddings().weight

    def forward(batch: Batch) -> Tensor:
        with torch.autocast(case.device, torch.bfloat16, enabled=case.precision == "bfloat16"):
            hidden = hidden_states(batch.tokens_BT.to(case.device)).flatten(0, 1)
            loss: Tensor = criterion(hidden.bfloat16(), batch.targets_BT.to(case.device).flatten(), head.bfloat16())
            return loss

    def update() -> None:
        nn.utils.clip_grad_norm_(model.parameters(), config.gradient_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return engine, Trained(forward, update, lambda: None)


def _qwen3(case: TrainingCase) -> tuple[str, Any, Any]:
    import transformers

    if not is_qwen3(case.architecture):
        raise ValueError(f"transformers' Qwen3 has no shape like '{case.preset}': give a Qwen3 preset, or another peer")
    config = qwen3_config(case.architecture)
    config._attn_implementation = "sdpa"
    with torch.device(case.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    engine = f"transformers {transformers.__version__} (compiled by block, SDPA, autocast, fused loss)"
    return engine, model, lambda tokens: model.model(tokens, use_cache=False).last_hidden_state


def _deltanet(case: TrainingCase) -> tuple[str, Any, Any]:
    a = case.architecture
    blocks = len(a.operators) // 2
    if a.operators != "DF" * blocks or a.num_meta_tokens:
        raise ValueError(f"fla's DeltaNet has no shape like '{case.preset}': give deltanet-1b, or another peer")
    import fla
    from fla.models import DeltaNetConfig, DeltaNetForCausalLM

    config = DeltaNetConfig(
        hidden_size=a.hidden_size,
        num_heads=a.num_heads,
        num_hidden_layers=blocks,
        intermediate_size=a.ffn_size,
        vocab_size=a.vocab_size,
        norm_eps=a.norm_eps,
        tie_word_embeddings=True,
        max_position_embeddings=a.max_position_embeddings,
        use_cache=False,
    )
    with torch.device(case.device):
        model = DeltaNetForCausalLM(config)
    engine = f"flash-linear-attention {fla.__version__} (fused modules, autocast, fused loss)"
    return engine, model, lambda tokens: model.model(tokens, use_cache=False).last_hidden_state

"""The same training step in transformers (Qwen3's shapes) or flash-linear-attention (DeltaNet's), at its best here.

fp32 weights and moments under bf16 autocast, fused AdamW, and flash-linear-attention's fused head and loss in both.
transformers is compiled block by block; compiled as a whole it would build a dense mask.
"""

import importlib.util
from typing import Any, Literal

import torch
from torch import Tensor, nn

from flashslm.benchmarking.qwen3_shape import is_qwen3, qwen3_config
from flashslm.benchmarking.training_steps import Trained, TrainingCase
from flashslm.config import TrainingConfig
from flashslm.data.loader import Batch
from flashslm.models.architecture import Architecture

Library = Literal["transformers", "fla"]
_PACKAGES = {"fla": "flash-linear-attention", "transformers": "transformers"}  # fla's loss is in both


def require_peer(case: TrainingCase, library: Library) -> None:
    """Raises ValueError where the library has no such shape, something is not installed, or a GPU is missing."""
    if library == "transformers" and not is_qwen3(case.architecture):
        raise ValueError(f"transformers' Qwen3 has no shape like '{case.preset}': give a Qwen3 preset, or another peer")
    if library == "fla" and not _is_deltanet(case.architecture):
        raise ValueError(f"fla's DeltaNet has no shape like '{case.preset}': give deltanet-1b, or another peer")
    if case.device != "cuda":
        raise ValueError(f"peer '{library}' needs a GPU, and this run is on the CPU: leave out --peer")
    if missing := [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]:
        raise ValueError(f"peer '{library}' needs {' and '.join(missing)}: pip install 'flashslm[cuda]'")


def build_peer(case: TrainingCase, library: Library) -> tuple[str, Trained]:
    """The library with its version and settings, and its step. Raises ValueError as `require_peer` does."""
    require_peer(case, library)
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

    config = qwen3_config(case.architecture)
    config._attn_implementation = "sdpa"
    with torch.device(case.device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for layer in model.model.layers:
        layer.compile(dynamic=False)
    engine = f"transformers {transformers.__version__} (compiled by block, SDPA, autocast, fused loss)"
    return engine, model, lambda tokens: model.model(tokens, use_cache=False).last_hidden_state


def _deltanet(case: TrainingCase) -> tuple[str, Any, Any]:
    import fla
    from fla.models import DeltaNetConfig, DeltaNetForCausalLM

    a = case.architecture
    config = DeltaNetConfig(
        hidden_size=a.hidden_size,
        num_heads=a.num_heads,
        num_hidden_layers=len(a.operators) // 2,
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


def _is_deltanet(architecture: Architecture) -> bool:
    blocks = len(architecture.operators) // 2
    return architecture.operators == "DF" * blocks and not architecture.num_meta_tokens

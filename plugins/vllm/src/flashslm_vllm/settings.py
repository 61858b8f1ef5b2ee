"""What vLLM asks of an export's config.json: its sizes, and settings that follow from them."""

from typing import Any

import torch
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateDtypeCalculator
from vllm.model_executor.models.config import VerifyAndUpdateConfig
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase

from flashslm.export.hf_config import architecture_from_config
from flashslm.models.architecture import Architecture
from flashslm_vllm import RENDERER_MODE
from flashslm_vllm.limits import setting_problems
from flashslm_vllm.states import largest_state

MAMBA_CHUNK_TOKENS = 256  # of vLLM's chunked scan
LAYER_KINDS = {"A": "attention", "F": "mlp"}  # vLLM's words; every other operator is "mamba" to it


def architecture_of(hf_config: Any) -> Architecture:
    """Raises ConfigMismatch (a ValueError) that names every field of config.json that does not fit."""
    return architecture_from_config(hf_config.to_dict())


def state_dtypes(vllm_config: Any) -> tuple[torch.dtype, torch.dtype]:
    """Of a convolution's last inputs and of a recurrent state, DeltaNet's and Mamba-2's alike."""
    cache = vllm_config.cache_config
    return MambaStateDtypeCalculator.mamba2_state_dtype(
        vllm_config.model_config.dtype, cache.mamba_cache_dtype, cache.mamba_ssm_cache_dtype
    )


class NemotronFlashSizes(ModelArchConfigConvertorBase):
    """The meta tokens are the last ids of the vocabulary, and take positions as text does."""

    def get_vocab_size(self) -> int:
        return self.hf_config.vocab_size + self.hf_config.num_memory_tokens

    def derive_max_model_len_and_key(self) -> tuple[float, str | None]:
        return self.hf_config.max_position_embeddings, "max_position_embeddings"


class NemotronFlashSettings(VerifyAndUpdateConfig):
    """vLLM calls both before it builds anything."""

    @staticmethod
    def verify_and_update_model_config(model_config: Any) -> None:
        if model_config.tokenizer_mode not in ("auto", "hf", RENDERER_MODE):
            raise ValueError(f"--tokenizer-mode {model_config.tokenizer_mode}: leave it out, the meta tokens need ours")
        model_config.tokenizer_mode = RENDERER_MODE
        architecture = architecture_of(model_config.hf_config)
        model_config.hf_config.mamba_chunk_size = MAMBA_CHUNK_TOKENS
        model_config.hf_config.layers_block_type = [LAYER_KINDS.get(o, "mamba") for o in architecture.operators]

    @staticmethod
    def verify_and_update_config(vllm_config: Any) -> None:
        architecture = architecture_of(vllm_config.model_config.hf_config)
        if problems := setting_problems(vllm_config, architecture):
            raise ValueError("flashslm-vllm does not support these settings: " + "; ".join(problems))
        cache = vllm_config.cache_config
        if cache.mamba_ssm_cache_dtype == "auto":
            cache.mamba_ssm_cache_dtype = "float32"  # a sum over all tokens, of which bfloat16 loses the late ones
        conv_dtype, recurrent_dtype = state_dtypes(vllm_config)
        state = largest_state(architecture, conv_dtype.itemsize, recurrent_dtype.itemsize)
        # DeltaNet's and Mamba-2's states differ in size, their blocks must not; vLLM raises this to attention's blocks.
        cache.mamba_page_size_padded = state.num_bytes(conv_dtype.itemsize, recurrent_dtype.itemsize) or None

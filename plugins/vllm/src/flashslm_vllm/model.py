"""The exported hybrid language model in vLLM."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from vllm.compilation.decorators import support_torch_compile
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.mamba.mamba_utils import MambaStateCopyFuncCalculator
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.interfaces import HasInnerState, IsHybrid

from flashslm.models.architecture import Architecture
from flashslm.models.rope import Rotary, rotary
from flashslm_vllm.attention import FeedForward, GroupedQueryAttention
from flashslm_vllm.recurrent import DeltaNet, Mamba2
from flashslm_vllm.settings import architecture_of, state_dtypes
from flashslm_vllm.states import largest_state
from flashslm_vllm.weights import load

OPERATORS: dict[str, Any] = {"A": GroupedQueryAttention, "D": DeltaNet, "M": Mamba2, "F": FeedForward}


class NemotronFlashLayer(nn.Module):
    """x + operator(norm(x)); the sum is left to the next norm, which adds and normalises in one kernel."""

    def __init__(self, operator: str, a: Architecture, vllm_config: Any, prefix: str) -> None:
        super().__init__()
        self.norm = RMSNorm(a.hidden_size, eps=a.norm_eps)
        self.operator = OPERATORS[operator](a, vllm_config, prefix=f"{prefix}.operator")

    def forward(self, x_TD: Tensor, residual_TD: Tensor | None, angles: Rotary) -> tuple[Tensor, Tensor]:
        if residual_TD is None:
            return self.operator(self.norm(x_TD), angles), x_TD
        x_TD, residual_TD = self.norm(x_TD, residual_TD)
        return self.operator(x_TD, angles), residual_TD


@support_torch_compile
class NemotronFlashModel(nn.Module):
    """Hidden states [T, D] of a batch's tokens, the sequences one behind the other."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.architecture = a = architecture_of(vllm_config.model_config.hf_config)
        self.rotary_sizes = a.head_dim, a.rotary_theta  # plain numbers, which the compiler takes as constants
        self.embed_tokens = VocabParallelEmbedding(a.vocab_size + a.num_meta_tokens, a.hidden_size)
        self.layers = nn.ModuleList(
            NemotronFlashLayer(operator, a, vllm_config, f"{prefix}.layers.{index}")
            for index, operator in enumerate(a.operators)
        )
        self.final_layernorm = RMSNorm(a.hidden_size, eps=a.norm_eps)

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        x_TD = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        angles = rotary(positions, *self.rotary_sizes)
        residual_TD = None
        for layer in self.layers:
            x_TD, residual_TD = layer(x_TD, residual_TD, angles)
        return self.final_layernorm(x_TD, residual_TD)[0]


class NemotronFlashForCausalLM(nn.Module, HasInnerState, IsHybrid):
    """The meta tokens have the ids behind the text's, embeddings of their own and no logits."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        super().__init__()
        self.model = NemotronFlashModel(vllm_config=vllm_config, prefix=f"{prefix}.model" if prefix else "model")
        self.architecture = a = self.model.architecture
        self.logits_processor = LogitsProcessor(a.vocab_size + a.num_meta_tokens)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        return self.model.embed_tokens(input_ids)

    def forward(self, input_ids: Tensor | None, positions: Tensor, *others: Any, **named: Any) -> Tensor:
        return self.model(input_ids, positions, *others, **named)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        logits = self.logits_processor(self.model.embed_tokens, hidden_states)
        if logits is not None:
            logits[..., self.architecture.vocab_size :] = -torch.inf
        return logits

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        return load(dict(self.named_parameters()), weights, self.architecture)

    @classmethod
    def get_mamba_state_dtype_from_config(cls, vllm_config: Any) -> tuple[torch.dtype, torch.dtype]:
        return state_dtypes(vllm_config)

    @classmethod
    def get_mamba_state_shape_from_config(cls, vllm_config: Any) -> Any:
        """The largest state: vLLM makes every block as large."""
        sizes = (dtype.itemsize for dtype in state_dtypes(vllm_config))
        return tuple(largest_state(architecture_of(vllm_config.model_config.hf_config), *sizes))

    @classmethod
    def get_mamba_state_copy_func(cls) -> Any:
        return MambaStateCopyFuncCalculator.gated_delta_net_state_copy_func()

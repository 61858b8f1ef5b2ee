"""A model whose matrices have 8 bits: what decoding with such weights computes, prefill and a CPU's included."""

import torch
from torch import nn

from flashslm.config import WeightFormat
from flashslm.models.hybrid import HybridLM
from flashslm.ops.int8_weights import quantise_rows


@torch.no_grad()
def round_to_int8(model: HybridLM) -> HybridLM:
    """Round the matrices of all linear layers and the embedding, which is the head, in place; returns the model.

    Each keeps its dtype. The kernels of a decode step find the whole numbers again, through bf16 to its accuracy; a
    prefill, and steps of many sequences, compute with the rounded matrices as they are.
    """
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            module.weight.copy_(quantise_rows(module.weight).dequantised())
    return model


def as_served(model: HybridLM, weights: WeightFormat) -> HybridLM:
    """The model with its weights as a decode engine of this format computes with them; in place."""
    return round_to_int8(model) if weights == "int8" else model

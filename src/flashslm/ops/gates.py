"""What stands between matrix products: SwiGLU and Mamba-2's gated RMSNorm. Outputs have the dtype of their inputs."""

import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.precision import at_least_fp32


def swiglu_naive(gate_up: Tensor) -> Tensor:
    """silu(gate) · up of [..., 2F], gate before up: [..., F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def gated_norm_naive(y: Tensor, z: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm(y · silu(z)) over the last dimension, in at least fp32; z's dtype."""
    gated = y * F.silu(at_least_fp32(z))
    return F.rms_norm(gated, weight.shape, weight.to(gated.dtype), eps).to(z.dtype)

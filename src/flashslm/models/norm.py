"""RMSNorm: x / sqrt(mean(x^2) + eps) * w, computed in fp32 at least."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INNER_NORM_EPS = 1e-5  # inside every mixer, independent of the architecture's norm_eps


class RMSNorm(nn.Module):
    """Normalise the last dimension; the output has the input's dtype."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        dtype = torch.promote_types(x.dtype, self.weight.dtype)
        return F.rms_norm(x.to(dtype), self.weight.shape, self.weight.to(dtype), self.eps).to(x.dtype)

"""The short causal convolution with SiLU by flash-linear-attention; shapes and semantics of `ops.causal_conv`."""

import torch
import torch.nn.functional as F
from torch import Tensor

from flashslm.ops.documents import positions_in_document
from flashslm.ops.fused.packing import one_row, pack
from flashslm.ops.precision import without_autocast


@without_autocast
def causal_conv_fla(
    x_BTD: Tensor,
    weight_DK: Tensor,
    bias_D: Tensor | None = None,
    initial_state_BDK1: Tensor | None = None,
    documents_BT: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns what `causal_conv_naive` does."""
    from fla.modules.causal_conv1d import causal_conv1d

    batch, _, channels = x_BTD.shape
    initial = initial_state_BDK1
    if initial is None:
        initial = x_BTD.new_zeros(batch, channels, weight_DK.shape[1] - 1)
    initial = initial.to(x_BTD.dtype)
    before = F.pad(initial, (1, 0))  # the library's state has one place more, which no token reads
    if documents_BT is None:
        y, _ = causal_conv1d(
            x_BTD.contiguous(), weight_DK, bias_D, initial_state=before.contiguous(), activation="silu"
        )
        return y, _last_inputs(x_BTD, initial, x_BTD.shape[1])
    packing = pack(documents_BT)
    y, _ = causal_conv1d(
        one_row(x_BTD).contiguous(),
        weight_DK,
        bias_D,
        initial_state=before.index_select(0, packing.row_N),
        activation="silu",
        cu_seqlens=packing.offsets_N1,
    )
    return y.view_as(x_BTD), _last_inputs_in_document(x_BTD, initial, documents_BT)


def _last_inputs(x_BTD: Tensor, initial_BDK1: Tensor, length: int) -> Tensor:
    kept = initial_BDK1.shape[2]
    last = x_BTD[:, max(0, length - kept) :].mT
    return torch.cat([initial_BDK1, last], dim=2)[..., -kept:]


def _last_inputs_in_document(x_BTD: Tensor, initial_BDK1: Tensor, documents_BT: Tensor) -> Tensor:
    """The same for each row's last document, which may be shorter than the state."""
    kept, length = initial_BDK1.shape[2], x_BTD.shape[1]
    tokens_B = positions_in_document(documents_BT)[:, -1] + 1
    place = torch.arange(kept, device=x_BTD.device)
    recent = _last_inputs(x_BTD, initial_BDK1, length)
    shifted = (place + tokens_B[:, None]).clamp(max=kept - 1)[:, None].expand_as(initial_BDK1)
    from_document = place >= kept - tokens_B[:, None]
    return torch.where(from_document[:, None], recent, initial_BDK1.gather(2, shifted))

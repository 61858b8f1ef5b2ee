"""State-space duality by mamba-ssm's Triton kernels. Shapes and semantics are those of `ops.ssd`."""

import torch
from torch import Tensor

from flashslm.ops.documents import document_starts
from flashslm.ops.precision import without_autocast
from flashslm.ops.ssd import RawScan, SSDInputs, SSDToken

CHUNK_SIZE = 256


@without_autocast
def ssd_mamba(inputs: SSDInputs, raw: RawScan | None = None) -> tuple[Tensor, Tensor]:
    """Returns what `ssd_naive` does, to the accuracy of x's dtype (tf32 for fp32).

    With `raw` the kernels add dt's bias, take its softplus and add the skip. x, b and c may be slices of one tensor.
    """
    from mamba_ssm.ops.triton.ssd_combined import mamba_chunk_scan_combined

    x_BTHP, dt_BTH, a_H, b_BTN, c_BTN, initial_state_BHPN, documents_BT = inputs
    packed = documents_BT is not None
    initial = None if initial_state_BHPN is None else initial_state_BHPN.float().contiguous()
    more = {} if raw is None else {"D": raw.skip_H, "dt_bias": raw.dt_bias_H, "dt_softplus": True}
    y, state = mamba_chunk_scan_combined(
        x_BTHP,
        dt_BTH,
        a_H.float(),
        b_BTN.to(x_BTHP.dtype)[:, :, None],
        c_BTN.to(x_BTHP.dtype)[:, :, None],
        chunk_size=CHUNK_SIZE,
        initial_states=None if packed else initial,
        seq_idx=None if documents_BT is None else document_starts(documents_BT).cumsum(1, dtype=torch.int32),
        return_final_states=True,
        **more,
    )
    if documents_BT is None or initial is None:
        return y, state
    dt_BTH = dt_BTH.float() if raw is None else raw.step_size(dt_BTH)
    return _add_initial(y, state, dt_BTH * a_H.float(), c_BTN, initial, documents_BT)


def _add_initial(
    y: Tensor, state: Tensor, log_decay_BTH: Tensor, c_BTN: Tensor, initial: Tensor, documents_BT: Tensor
) -> tuple[Tensor, Tensor]:
    """What every document reads from the state it starts on: the kernels start all but a row's first one on zero.

    The recurrence is linear in its initial state, so that part is exp(L_t) S_0 c_t with L the cumulative log decay in
    the document.
    """
    starts_BT = document_starts(documents_BT)
    total = log_decay_BTH.cumsum(1)
    index_BT = torch.where(starts_BT, torch.arange(y.shape[1], device=y.device), 0).cummax(1).values
    before = (total - log_decay_BTH).gather(1, index_BT[..., None].expand_as(total))
    decay_BTH = (total - before).exp()
    read = torch.einsum("btn,bhpn->bthp", c_BTN.to(y.dtype), initial.to(y.dtype))
    return y + (read * decay_BTH[..., None]).to(y.dtype), state + decay_BTH[:, -1, :, None, None] * initial


def ssd_step_mamba(token: SSDToken) -> Tensor:
    """Advance one token. Returns y [B, H, P] in x's dtype."""
    from mamba_ssm.ops.triton.selective_state_update import selective_state_update

    x_BHP, dt_BH, a_H, b_BN, c_BN, state_BHPN = token
    heads, size, state_size = state_BHPN.shape[1:]
    dt = dt_BH.float()[..., None].expand(-1, -1, size)
    a = a_H.float()[:, None, None].expand(heads, size, state_size)
    # Strides of zero tell the kernel that a head has one dt and one decay; it asks bias and skip for theirs too.
    zeros = dt.new_zeros(1).expand(heads, size)
    b, c = (t[:, None].contiguous() for t in (b_BN, c_BN))
    y: Tensor = selective_state_update(state_BHPN, x_BHP, dt, a, b, c, D=zeros, dt_bias=zeros)
    return y

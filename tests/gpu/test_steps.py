"""One-token steps by fused kernels continue what the sequence forms computed."""

import pytest
import torch
import torch.nn.functional as F

from flashslm.ops.delta_rule import DeltaRuleInputs, DeltaRuleToken, delta_rule_naive
from flashslm.ops.gradient_check import relative_error
from flashslm.ops.ssd import SSDInputs, SSDToken, ssd_naive
from tests.gpu.conftest import TOLERANCE
from tests.gpu.test_fused_ops import delta_inputs, normal

pytestmark = pytest.mark.gpu
LENGTH = 70


@pytest.mark.parametrize("gated", [False, True])
def test_delta_rule_steps(gated):
    from flashslm.ops.fused.linear_attention import delta_rule_step_fla

    q, k, v, beta, state = delta_inputs(LENGTH, 64, 64)
    log_decay = -F.softplus(torch.randn(2, LENGTH, 2, device="cuda")) if gated else None
    state = state.repeat(2, 1, 1, 1)
    exact = [x.double() for x in (q, k, v, beta, state)]
    expected, last = delta_rule_naive(
        DeltaRuleInputs(*exact, log_decay_BTH=None if log_decay is None else log_decay.double())
    )
    outputs = [
        delta_rule_step_fla(
            DeltaRuleToken(*(x[:, t] for x in (q, k, v, beta)), state, log_decay[:, t] if gated else None)
        )
        for t in range(LENGTH)
    ]
    assert relative_error(torch.stack(outputs, 1), expected) < TOLERANCE[torch.bfloat16]
    assert relative_error(state, last) < 1e-4


def test_ssd_steps():
    from flashslm.ops.fused.ssd import ssd_step_mamba

    x, b, c = normal(2, LENGTH, 4, 64), normal(2, LENGTH, 128), normal(2, LENGTH, 128)
    dt, a = F.softplus(torch.randn(2, LENGTH, 4, device="cuda") - 2), -torch.rand(4, device="cuda") * 15 - 1
    state = torch.randn(2, 4, 64, 128, device="cuda")
    expected, last = ssd_naive(SSDInputs(*(t.double() for t in (x, dt, a, b, c, state))))
    outputs = [ssd_step_mamba(SSDToken(x[:, t], dt[:, t], a, b[:, t], c[:, t], state)) for t in range(LENGTH)]
    assert relative_error(torch.stack(outputs, 1), expected) < TOLERANCE[torch.bfloat16]
    assert relative_error(state, last) < 1e-4

"""Energy of a step by NVML's counter: of the right unit, by comparison with the power that the driver reports."""

import time

import pytest
import torch

from flashslm.profiling.energy import joules_per_token

pytestmark = pytest.mark.gpu


def test_joules_are_watts_times_seconds():
    """Beside other tests of the same GPU too, whose energy counts: the whole GPU takes between 20 and 2,000 W."""
    pytest.importorskip("pynvml", reason="nvidia-ml-py, of the extra cuda, is not installed")
    matrix, calls = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16), 0

    def step():
        nonlocal calls
        calls += 1
        return matrix @ matrix

    start = time.monotonic()
    joules = joules_per_token(step, 4, "cuda")
    seconds = time.monotonic() - start
    assert joules is not None, "NVML has no energy counter for this GPU"
    assert 20 < joules * 4 * calls / seconds < 2_000

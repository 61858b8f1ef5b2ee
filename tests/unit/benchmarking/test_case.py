"""What is measured is checked before anything is built."""

import pytest
import torch

from flashslm.benchmarking.case import prompts
from flashslm.benchmarking.result import moved_bytes
from flashslm.config import KernelsConfig
from flashslm.models.accounting import kv_bytes_per_sequence, parameters, state_bytes
from flashslm.ops.kernels import read_setting


def test_sizes_that_follow(make_case):
    case = make_case(context=20, new_tokens=9)
    assert (case.mean_context, case.last_context, case.capacity) == (24, 29, 29)
    assert make_case(new_tokens=1).capacity == 20 + 5  # warm-up steps need room too


@pytest.mark.parametrize(("dtype", "value_bytes"), [("float32", 4), ("bfloat16", 2)])
def test_bytes_of_a_mean_step(make_case, architecture, dtype, value_bytes):
    case = make_case(dtype=dtype, batch=3)
    weights = (parameters(architecture)["total"] - 8 * 32) * value_bytes
    sequence = kv_bytes_per_sequence(architecture, 8 + 23, value_bytes) + 2 * state_bytes(architecture, 4, value_bytes)
    assert case.bytes_per_token == weights + 3 * sequence


def test_bytes_of_weights_of_8_bits(make_case):
    """They count where a step reads them: in fused steps of few sequences."""
    cases = {
        (weights, batch): make_case(device="cuda", dtype="bfloat16", weights=weights, batch=batch)
        for weights in ("full", "int8")
        for batch in (1, 64)
    }
    assert moved_bytes(cases["int8", 1], "fused") < 0.7 * moved_bytes(cases["full", 1], "fused")
    assert moved_bytes(cases["int8", 1], "torch") == moved_bytes(cases["full", 1], "torch")
    assert moved_bytes(cases["int8", 64], "fused") == moved_bytes(cases["full", 64], "fused")


def test_prompts_are_random_tokens_on_the_host(make_case):
    tokens_BT = prompts(make_case(batch=3, context=40))
    assert tokens_BT.shape == (3, 40) and tokens_BT.device.type == "cpu" and tokens_BT.dtype == torch.int64
    assert tokens_BT.min() >= 0 and tokens_BT.max() < 50 and len(tokens_BT.unique()) > 25


def test_the_last_position_may_be_used(make_case):
    assert make_case(context=114, new_tokens=6).last_context == 120


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"batch": 0}, "batch is 0: at least 1"),
        ({"context": -1, "new_tokens": 0}, "context is -1: at least 1; new_tokens is 0: at least 1"),
        ({"repeats": 0}, "repeats is 0: at least 1"),
        ({"context": 115}, "context 115 and 6 new tokens are beyond the 120 text positions of 'tiny'"),
    ],
    ids=["batch", "context-and-steps", "repeats", "positions"],
)
def test_sizes_that_do_not_fit(make_case, sizes, message):
    with pytest.raises(ValueError, match=message):
        make_case(**sizes)


def test_kernel_settings():
    assert read_setting(None) == KernelsConfig()
    assert read_setting(["decode=torch", "ssd=chunked"]) == KernelsConfig(decode="torch", ssd="chunked")
    with pytest.raises(ValueError, match=r"kernels: 'gemm' is not an operation: choose among default, .*decode"):
        read_setting(["gemm=cuda"])

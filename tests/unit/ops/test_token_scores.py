"""The forms of a head's log-probabilities against the naive one."""

import math
import sys
from importlib.util import find_spec
from types import SimpleNamespace

import pytest
import torch

from flashslm.ops import dispatch, token_scores
from flashslm.ops.token_scores import HeadInputs, ScoreTokens, token_scores_chunked, token_scores_naive
from tests.op_calls import interpreted

SHAPES = [(1, 37, 16), (7, 300, 20), (50, 1000, 64), (131, 9000, 33)]  # tokens, vocabulary, width


def inputs(shape: tuple[int, int, int], dtype: torch.dtype) -> HeadInputs:
    """About every third token is the most likely one."""
    tokens, vocabulary, width = shape
    hidden, weight = torch.randn(tokens, width), torch.randn(vocabulary, width)
    ids = torch.randint(vocabulary, (tokens,))
    ids[::3] = (hidden.to(dtype).double() @ weight.to(dtype).double().T).argmax(dim=-1)[::3]
    return HeadInputs(hidden.to(dtype), weight.to(dtype), ids)


def check(form: ScoreTokens, given: HeadInputs, rtol: float, atol: float) -> None:
    """Against the naive form in float64 of the same rounded values."""
    hidden, weight, ids = given
    expected = token_scores_naive(HeadInputs(hidden.double().cpu(), weight.double().cpu(), ids.cpu()))
    found = form(given)
    torch.testing.assert_close(found.nats_N.double().cpu(), expected.nats_N, rtol=rtol, atol=atol)
    assert found.is_likeliest_N.tolist() == expected.is_likeliest_N.tolist()


def ties() -> HeadInputs:
    """Four of 9,000 entries are the same and the best: the first of them counts as the most likely."""
    weight, ids = torch.randn(9000, 16).clamp(-1, 1), torch.tensor([3, 250, 550, 8800])
    weight[ids] = 2.0
    return HeadInputs(torch.ones(4, 16), weight, ids)


def test_naive_is_the_log_of_the_softmax() -> None:
    inputs = HeadInputs(torch.tensor([[1.0]]), torch.tensor([[0.0], [math.log(3)]]), torch.tensor([1]))
    nats, is_likeliest = token_scores_naive(inputs)
    assert nats.item() == pytest.approx(math.log(0.75)) and is_likeliest.tolist() == [True]


@pytest.mark.parametrize("shape", SHAPES)
def test_chunked_is_naive(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(token_scores.CHUNK_LOGITS, "cpu", 3 * shape[1])
    check(token_scores_chunked, inputs(shape, torch.float32), 1e-5, 1e-5)


@pytest.mark.parametrize("form", [token_scores_naive, token_scores_chunked])
def test_of_equal_logits_the_first_is_the_most_likely(form: ScoreTokens) -> None:
    assert form(ties()).is_likeliest_N.tolist() == [True, False, False, False]


def test_no_token_has_no_score() -> None:
    assert [len(of) for of in token_scores_chunked(inputs((0, 37, 16), torch.float32))] == [0, 0]


@pytest.mark.parametrize(
    ("dtype", "shared_bytes", "fused"),
    [(torch.bfloat16, 232_448, True), (torch.bfloat16, 101_376, False), (torch.float32, 232_448, False)],
    ids=["H200", "L4", "fp32"],
)
def test_the_fused_form_runs_where_its_tiles_fit(
    dtype: torch.dtype, shared_bytes: int, fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its kernel would not start on a GPU with less shared memory. The device is made up."""
    calls: list[int] = []

    def triton_form(given: HeadInputs) -> token_scores.TokenScores:
        calls.append(1)
        return token_scores_chunked(given)

    module = SimpleNamespace(SHARED_BYTES=147_456, token_scores_triton=triton_form)
    monkeypatch.setitem(sys.modules, "flashslm.ops.fused.token_scores", module)
    monkeypatch.setattr(dispatch, "backend_of", lambda operation, x: "triton")
    properties = SimpleNamespace(shared_memory_per_block_optin=shared_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    given = inputs(SHAPES[0], dtype)
    found, expected = dispatch.token_scores(given), token_scores_chunked(given)
    assert bool(calls) == fused and torch.equal(found.nats_N, expected.nats_N)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["fp32", "fp16"])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_fused_form_is_naive_under_the_interpreter(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    """fp16 stands for bf16, whose products the interpreter takes for those of integers."""
    from flashslm.ops.fused.token_scores import token_scores_triton

    check(token_scores_triton, inputs(shape, dtype), 1e-5, 1e-4)
    assert token_scores_triton(ties()).is_likeliest_N.tolist() == [True, False, False, False]
    assert [len(of) for of in token_scores_triton(inputs((0, 37, 16), dtype))] == [0, 0]


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton, but no GPU")
def test_the_kernels_tiles_take_144_kib() -> None:
    """As the description of `kernels.cross_entropy` says."""
    from flashslm.ops.fused.token_scores import SHARED_BYTES

    assert SHARED_BYTES == 144 * 1024

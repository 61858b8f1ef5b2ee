import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from flashslm.ops import cross_entropy
from flashslm.ops.cross_entropy import linear_cross_entropy, linear_cross_entropy_naive


def make_inputs(count: int = 50, vocab: int = 37, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    hidden = torch.randn(count, 16, dtype=dtype, requires_grad=True)
    weight = torch.randn(vocab, 16, dtype=dtype, requires_grad=True)
    return hidden, weight, torch.randint(vocab, (count,))


@pytest.fixture
def small_chunks(monkeypatch):
    """Seven tokens of a vocabulary of 37 at a time."""
    monkeypatch.setitem(cross_entropy.CHUNK_LOGITS, "cpu", 7 * 37)


@pytest.mark.parametrize("ignored", ["none", "some", "all"])
def test_is_naive_with_gradients(ignored, small_chunks):
    hidden, weight, targets = make_inputs()
    targets[:: {"none": 50, "some": 3, "all": 1}[ignored]] = -100
    if ignored == "none":
        targets[0] = 5
    expected = linear_cross_entropy_naive(hidden, weight, targets)
    expected_gradients = torch.autograd.grad(3 * expected, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(3 * loss, (hidden, weight)), expected_gradients)
    if ignored == "all":
        assert loss == 0


def test_naive_is_the_mean_over_kept_targets():
    hidden, weight, targets = make_inputs()
    targets[::3] = -1
    torch.testing.assert_close(
        linear_cross_entropy_naive(hidden, weight, targets, ignore_index=-1),
        F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1),
    )
    torch.testing.assert_close(
        linear_cross_entropy(hidden, weight, targets, ignore_index=-1),
        F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1),
    )


def test_gradients_by_finite_differences(small_chunks):
    hidden, weight, targets = make_inputs(count=9)
    assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


def test_large_logits_do_not_overflow():
    hidden, weight, targets = make_inputs(dtype=torch.float32)
    torch.testing.assert_close(
        linear_cross_entropy(hidden * 1e3, weight, targets), linear_cross_entropy_naive(hidden * 1e3, weight, targets)
    )


@pytest.mark.parametrize("mode", ["autocast", "bf16 hidden, fp32 weight"])
def test_bf16_products_keep_an_fp32_weight_gradient(mode, small_chunks):
    hidden, weight, targets = make_inputs(dtype=torch.float32)
    rounded = hidden.detach().bfloat16().float().requires_grad_(), weight.detach().bfloat16().float().requires_grad_()
    expected = linear_cross_entropy_naive(*rounded, targets)
    expected_gradients = torch.autograd.grad(expected, rounded)
    if mode == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = linear_cross_entropy(hidden, weight, targets)
    else:
        loss = linear_cross_entropy(hidden.bfloat16(), weight, targets)
    gradients = torch.autograd.grad(loss, (hidden, weight))
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    for actual, reference in zip(gradients, expected_gradients, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - reference).norm() < 0.02 * reference.norm()


class LargestTensor(TorchDispatchMode):
    """Remembers the size of the largest tensor, views apart, that any operation returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and not func.is_view:
                self.numel = max(self.numel, tensor.numel())
        return result


def test_never_holds_all_logits(small_chunks):
    """Neither forward, nor backward, nor what is saved between them: hidden and weight are larger than a chunk here."""
    hidden, weight, targets = make_inputs(count=400)
    saved: list[int] = []
    with LargestTensor() as largest, torch.autograd.graph.saved_tensors_hooks(
        lambda t: saved.append(t.numel()) or t, lambda t: t
    ):  # fmt: skip
        linear_cross_entropy(hidden, weight, targets).backward()
    assert largest.numel == hidden.numel() < 400 * 37
    assert max(saved) <= hidden.numel()


def test_no_gradient_is_computed_when_none_is_asked(small_chunks):
    hidden, weight, targets = make_inputs()
    with torch.no_grad(), LargestTensor() as largest:
        loss = linear_cross_entropy(hidden, weight, targets)
    assert largest.numel < weight.numel() and not loss.requires_grad
    torch.testing.assert_close(loss, linear_cross_entropy_naive(hidden, weight, targets).detach())

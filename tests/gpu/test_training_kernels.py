"""Kernels that only training has: attention's heads, weight normalisation, compiled parts of a layer."""

import pytest
import torch

from flashslm.config import KernelsConfig, ModelConfig
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.unit_vectors import UnitVectors
from flashslm.ops import kernels
from flashslm.ops.rotary import HeadNorm, HeadsInputs, attention_heads_naive
from flashslm.training.weight_norm import project_weights_
from tests.gpu.conftest import LENGTHS, TOLERANCE


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("packed", [False, True], ids=["one-document", "packed"])
@pytest.mark.parametrize("normed", [False, True], ids=["rotated", "normed"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=["bf16", "fp32"])
@pytest.mark.parametrize("heads, size", [((4, 2), 128), ((3, 1), 20)], ids=["powers-of-2", "odd"])
def test_attention_heads(heads, size, dtype, normed, packed, length, assert_close):
    from flashslm.ops.fused.rotary import attention_heads_triton

    batch = 2
    angles = torch.randn(*((batch,) if packed else ()), length, 1, size // 2, device="cuda")
    qkv = torch.randn(batch, length, (heads[0] + 2 * heads[1]) * size, device="cuda", dtype=dtype)
    weights = [torch.randn(size, device="cuda").abs() + 0.1 for _ in range(2)] if normed else []

    def call(form):
        def op(x, *given):
            table = angles.to(torch.promote_types(x.dtype, torch.float32))
            norm = HeadNorm(*given, 1e-5, 1e-2) if given else None
            return form(HeadsInputs(x, table.cos(), table.sin(), heads, norm))

        return op

    inputs = [qkv, *weights]
    assert_close(call(attention_heads_naive), call(attention_heads_triton), inputs, TOLERANCE[dtype], state=False)


class Weights(torch.nn.Module):
    def __init__(self, axes):
        super().__init__()
        for name, (_, rows, width) in axes.items():
            self.register_parameter(name, torch.nn.Parameter(torch.randn(rows, width, device="cuda")))
        self.vectors = {name: UnitVectors(axis) for name, (axis, _, _) in axes.items()}
        with torch.no_grad():
            self.a[1], self.b[:, 2] = 0.0, 0.0

    def unit_vectors(self, axes):
        return {name: vectors._replace(heads=axes.get(name, ())) for name, vectors in self.vectors.items()}


def test_weight_norm_divides_rows_and_columns():
    model = Weights({"a": (1, 7, 2500), "b": (0, 130, 70), "c": (1, 300, 33), "d": (0, 5, 64)})
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    project_weights_(model)
    for name, (axis, _) in model.vectors.items():
        norm = before[name].norm(dim=axis, keepdim=True).clamp(min=1e-8)
        torch.testing.assert_close(model.get_parameter(name).double(), before[name] / norm, rtol=1e-6, atol=1e-7)


def test_weight_norm_divides_heads_beside_whole_vectors():
    model = Weights({"a": (1, 7, 2500), "b": (0, 130, 70), "c": (1, 300, 33)})
    before = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    heads = {"b": (64, 64, 2), "c": (30, 3)}
    project_weights_(model, heads)
    for name, (axis, _) in model.vectors.items():
        whole = model.get_parameter(name).double().split(heads.get(name, before[name].shape[axis]), dim=axis)
        for found, part in zip(whole, before[name].split(heads.get(name, 9999), dim=axis), strict=True):
            norm = part.norm(dim=axis, keepdim=True).clamp(min=1e-8)
            torch.testing.assert_close(found, part / norm, rtol=1e-6, atol=1e-7)


def test_a_compiled_model_has_the_gradients_of_the_plain_one():
    sizes = ModelConfig(head_dim=64, kv_group=2, ffn_ratio=3, mamba_state=64, mamba_head_dim=64, num_meta_tokens=8)
    architecture = build_architecture("DFMFAF", 256, sizes, vocab_size=512)
    model = HybridLM.build(architecture, device="cuda")
    tokens = torch.randint(512, (2, 257), device="cuda")

    def gradients(form):
        kernels.configure(KernelsConfig(elementwise=form))
        model.zero_grad()
        with torch.autocast("cuda", torch.bfloat16):
            model.loss(tokens[:, :-1], tokens[:, 1:]).backward()
        return {name: p.grad.double().clone() for name, p in model.named_parameters()}

    try:
        plain, compiled = gradients("torch"), gradients("inductor")
        assert any(form == "inductor" for form in kernels.decisions().values())
    finally:
        kernels.configure(KernelsConfig())
    errors = {name: float((compiled[name] - plain[name]).norm() / plain[name].norm()) for name in plain}
    assert all(error < 5e-2 for error in errors.values()), {n: f"{e:.1e}" for n, e in errors.items() if e >= 5e-2}

"""Every kernel of the fused decode step equals the operations it fuses, in float64 on the same rounded inputs."""

import pytest
import torch
import torch.nn.functional as F

from flashslm.models.rope import Rotary, rotary, rotate
from flashslm.ops.attention import attention_step
from flashslm.ops.causal_conv import causal_conv_step
from flashslm.ops.delta_rule import DeltaRuleToken, delta_rule_step
from flashslm.ops.gradient_check import relative_error
from flashslm.ops.ssd import SSDToken, ssd_step

pytestmark = pytest.mark.gpu
TOLERANCE = 1e-2  # bf16 outputs of fp32 sums
SIZES = [(256, 40), (384, 50), (1024, 300), (2048, 37), (2304, 1100), (3072, 30), (4104, 21), (6144, 17), (9216, 9)]
EPS = 1e-6


def normal(*shape, dtype=torch.bfloat16):
    return torch.randn(*shape, device="cuda").to(dtype)


def product(*arguments, **options):
    from flashslm.inference.fused.projection import Product

    return Product(*arguments, **options)


def forms():
    from flashslm.inference.fused.batched import project_batch
    from flashslm.inference.fused.projection import project
    from flashslm.inference.fused.tiled import project_tiled

    return {"few": project, "many": project_batch, "tiled": project_tiled}


few_or_many = pytest.mark.parametrize(
    "form, batch",
    [
        ("few", 1),
        ("few", 2),
        ("few", 3),
        ("few", 4),
        ("many", 1),
        ("many", 33),
        ("tiled", 5),
        ("tiled", 33),
        ("tiled", 70),
    ],
)
every_size = pytest.mark.parametrize("size, rows", SIZES)


@few_or_many
@every_size
@pytest.mark.parametrize("head", [0, 64])
def test_projection_of_normalised_inputs(size, rows, head, form, batch):
    from flashslm.inference.fused.projection import Norm

    if head and size % head:
        pytest.skip("whole heads only")
    x, weight, norm = (
        normal(batch, size),
        normal(rows, size) * size**-0.5,
        torch.rand(head or size, device="cuda") + 0.5,
    )
    out = torch.full((batch, rows), torch.nan, device="cuda", dtype=torch.bfloat16)
    forms()[form](product(x, weight, out, Norm(norm, EPS, head)))
    heads = x.double().view(batch, -1, head or size)
    normed = F.rms_norm(heads, (head or size,), norm.double(), EPS).flatten(1)
    assert relative_error(out, normed @ weight.double().T) < TOLERANCE


@pytest.mark.parametrize("size, rows", [(8, 3), (72, 5), (136, 70)])
def test_tiled_products_of_narrow_inputs(size, rows):
    """Rows shorter than a tile, with numbers that are not numbers right behind the last."""
    from flashslm.inference.fused.tiled import project_tiled

    x, memory = normal(5, size), torch.full((rows * size + 4096,), torch.nan, device="cuda", dtype=torch.bfloat16)
    weight = memory[: rows * size].view(rows, size).copy_(normal(rows, size))
    out = torch.full((5, rows), torch.nan, device="cuda")
    project_tiled(product(x, weight, out))
    assert relative_error(out, x.double() @ weight.double().T) < 1e-5


@few_or_many
@every_size
def test_gated_projection(size, rows, form, batch):
    x, weight = normal(batch, size), normal(2 * rows, size) * size**-0.5
    out = torch.full((batch, rows), torch.nan, device="cuda", dtype=torch.bfloat16)
    forms()[form](product(x, weight, out, swiglu=True))
    gate, up = (x.double() @ weight.double().T).chunk(2, dim=1)
    assert relative_error(out, F.silu(gate) * up) < TOLERANCE


@few_or_many
@every_size
def test_projection_onto_the_stream(size, rows, form, batch):
    from flashslm.inference.fused.stream import Stream

    x, weight, before = normal(batch, size), normal(rows, size) * size**-0.5, normal(batch, rows, dtype=torch.float32)
    stream = Stream(before.clone(), torch.full((batch, rows), torch.nan, device="cuda", dtype=torch.bfloat16))
    forms()[form](product(x, weight, stream))
    assert relative_error(stream.exact, before.double() + x.double() @ weight.double().T) < TOLERANCE
    assert torch.equal(stream.rounded, stream.exact.bfloat16())


@few_or_many
@pytest.mark.parametrize("biased", [False, True])
def test_projection_into_a_ring(biased, form, batch):
    """Of many inputs the convolution itself is done as well."""
    from flashslm.inference.fused.projection import Ring

    x, weight = normal(batch, 256), normal(50, 256) / 16
    out = torch.full((batch, 50), torch.nan, device="cuda", dtype=torch.bfloat16)
    conv, taps = normal(batch, 20, 3), normal(20, 4, dtype=torch.float32)
    bias = normal(20, dtype=torch.float32) if biased else None
    lengths_B, rows = torch.randint(1000, (batch,), device="cuda"), torch.arange(batch, device="cuda")
    inputs = ring_of(conv, torch.full((batch, 20), torch.nan, device="cuda", dtype=torch.bfloat16), lengths_B)
    forms()[form](product(x, weight, out, ring=Ring(inputs, 7, lengths_B, taps, bias)))
    expected = x.double() @ weight.double().T
    assert relative_error(inputs[rows, lengths_B % 4], expected[:, 7:27]) < TOLERANCE
    assert relative_error(out[:, :7], expected[:, :7]) < TOLERANCE
    assert relative_error(out[:, 27:], expected[:, 27:]) < TOLERANCE
    assert torch.equal(inputs, ring_of(conv, inputs[rows, lengths_B % 4], lengths_B))
    if form == "few":
        assert out[:, 7:27].isnan().all()
        return
    new = inputs[rows, lengths_B % 4].double()
    convolved = causal_conv_step(new, taps.double(), bias.double() if biased else None, conv.double())
    assert relative_error(out[:, 7:27], convolved) < TOLERANCE


@pytest.mark.parametrize("rows", [3, 1003, 131_072])
def test_greedy_choice_takes_the_first_of_the_best(rows):
    from flashslm.inference.fused.projection import Best, project
    from flashslm.inference.fused.tokens import choose

    x, weight = normal(2, 256), normal(rows, 256)
    weight[rows // 2 :] = weight[: rows - rows // 2].clone()  # every score twice or more
    logits, tokens = torch.empty(2, rows, device="cuda"), torch.zeros(2, dtype=torch.int64, device="cuda")
    best = Best.allocate(2, weight)
    project(product(x, weight, logits), best)
    choose(best, tokens)
    assert torch.equal(tokens, (logits == logits.amax(1, keepdim=True)).int().argmax(1))


def test_embedding():
    from flashslm.inference.fused.stream import Stream
    from flashslm.inference.fused.tokens import embed

    table, tokens = normal(11, 384), torch.tensor([3, 0, 10], device="cuda")
    stream = Stream(torch.empty(3, 384, device="cuda"), torch.empty(3, 384, device="cuda", dtype=torch.bfloat16))
    embed(tokens, table, stream)
    assert torch.equal(stream.rounded, table[tokens]) and torch.equal(stream.exact, table[tokens].float())


def ring_of(conv_BCK, new_BC, lengths_B):
    """The ring that holds a convolution's state and the present input."""
    ring = torch.full((len(new_BC), 4, new_BC.shape[1]), torch.nan, device="cuda", dtype=new_BC.dtype)
    rows = torch.arange(len(new_BC), device="cuda")
    for back in (1, 2, 3):
        ring[rows, (lengths_B - back) % 4] = conv_BCK[:, :, -back]
    ring[rows, lengths_B % 4] = new_BC
    return ring


@pytest.mark.parametrize("convolved", [False, True])
@pytest.mark.parametrize("heads, size", [(3, 32), (2, 64), (16, 128)])
def test_delta_rule(heads, size, convolved):
    from flashslm.inference.fused.mixers import delta_rule_decode
    from flashslm.inference.fused.projection import Ring

    batch, channels = 2, 3 * heads * size
    new, conv, taps = normal(batch, channels), normal(batch, channels, 3), normal(channels, 4, dtype=torch.float32)
    inputs, lengths_B = torch.full((batch, channels + heads), torch.nan, device="cuda"), torch.tensor([5, 10]).cuda()
    inputs[:, channels:] = torch.randn(batch, heads)
    mixed = causal_conv_step(new.double(), taps.double(), None, conv.double())
    ring = ring_of(conv, new, lengths_B)
    if convolved:
        inputs[:, :channels], ring = mixed, ring.fill_(torch.nan)
    inputs = inputs.bfloat16()
    state = torch.randn(batch, heads, size, size, device="cuda")
    expected_state, out = state.double(), torch.full((batch, heads * size), torch.nan, device="cuda").bfloat16()
    delta_rule_decode(inputs, Ring(ring, 0, lengths_B, taps), state, out, EPS, convolved=convolved)
    q, k, v = mixed.view(batch, 3, heads, size).unbind(1)
    q, k = (x * torch.rsqrt(x.square().sum(-1, keepdim=True) + EPS) for x in (q, k))
    beta = inputs[:, channels:].double().sigmoid()
    expected = delta_rule_step(DeltaRuleToken(q * size**-0.5, k, v, beta, expected_state))
    assert relative_error(out, expected.flatten(1)) < TOLERANCE
    assert relative_error(state, expected_state) < TOLERANCE


@pytest.mark.parametrize("convolved", [False, True])
@pytest.mark.parametrize("heads, size, state_size", [(3, 32, 64), (8, 64, 128)])
def test_ssd(heads, size, state_size, convolved):
    from flashslm.inference.fused.mixers import ssd_decode
    from flashslm.inference.fused.projection import Ring

    batch, inner = 2, heads * size
    channels = inner + 2 * state_size
    new, conv = normal(batch, channels), normal(batch, channels, 3)
    taps, bias = normal(channels, 4, dtype=torch.float32), normal(channels, dtype=torch.float32)
    inputs = torch.full((batch, inner + channels + heads), torch.nan, device="cuda")
    inputs[:, :inner], inputs[:, inner + channels :] = torch.randn(batch, inner), torch.randn(batch, heads)
    lengths_B, mixed = torch.tensor([2, 8]).cuda(), causal_conv_step(*(t.double() for t in (new, taps, bias, conv)))
    ring = ring_of(conv, new, lengths_B)
    if convolved:
        inputs[:, inner : inner + channels], ring = mixed, ring.fill_(torch.nan)
    inputs = inputs.bfloat16()
    dt_bias, a_log, skip = (torch.rand(heads, device="cuda") for _ in range(3))
    state = torch.randn(batch, heads, size, state_size, device="cuda")
    expected_state, out = state.double(), torch.full((batch, inner), torch.nan, device="cuda").bfloat16()
    vectors = (dt_bias, a_log, skip)
    ssd_decode(inputs, Ring(ring, inner, lengths_B, taps, bias), vectors, state, out, convolved=convolved)
    z, dt = inputs[:, :inner].double(), inputs[:, inner + channels :].double()
    x, b, c = mixed.split([inner, state_size, state_size], dim=-1)
    x = x.view(batch, heads, size)
    y = ssd_step(SSDToken(x, F.softplus(dt + dt_bias), -a_log.double().exp(), b, c, expected_state)) + skip[:, None] * x
    assert relative_error(out, y.flatten(1) * F.silu(z)) < TOLERANCE
    assert relative_error(state, expected_state) < TOLERANCE


@pytest.mark.parametrize("splits", [1, 3, 0], ids=["whole", "three-splits", "as-allocated"])
@pytest.mark.parametrize("normed", [False, True], ids=["plain", "qk-norm"])
@pytest.mark.parametrize("lengths", [[0, 37], [63, 64], [130, 999]], ids=str)
@pytest.mark.parametrize("groups, group, size", [(2, 3, 64), (4, 4, 128), (2, 1, 32)])
def test_attention(groups, group, size, lengths, normed, splits):
    from flashslm.inference.fused.attention import Rotation, Splits, attention_decode
    from flashslm.inference.fused.step_plan import AttentionPlan

    batch, heads, slots = 2, groups * group, 1000
    inputs = normal(batch, (heads + 2 * groups) * size)
    keys, values = normal(batch, groups, slots, size), normal(batch, groups, slots, size)
    expected_keys, expected_values = keys.double(), values.double()
    lengths_B, angles = torch.tensor(lengths).cuda(), rotary(torch.arange(slots).cuda(), size, 10_000.0)
    norms = [torch.rand(size, device="cuda") + 0.5 if normed else None for _ in range(2)]
    cos, sin = (table[:, 0].contiguous() for table in angles)
    work = Splits.allocate(AttentionPlan(), heads, keys)
    work = work._replace(number=splits or work.number)
    out = torch.full((batch, heads * size), torch.nan, device="cuda", dtype=torch.bfloat16)
    attention_decode(inputs, Rotation(cos, sin, norms[0], norms[1], 1e-5), lengths_B, keys, values, out, work)
    q, k, v = inputs.double().view(batch, -1, size).split([heads, groups, groups], dim=1)
    if normed:
        q, k = (F.rms_norm(x, (size,), n.double(), 1e-5) for x, n in zip((q, k), norms, strict=True))
    here = Rotary(*(table.double().index_select(0, lengths_B) for table in angles))
    new_k = rotate(k, here)
    expected = attention_step(
        rotate(q, here), new_k, v, expected_keys.transpose(1, 2), expected_values.transpose(1, 2), lengths_B
    )
    assert relative_error(out, expected.flatten(1)) < TOLERANCE
    assert relative_error(keys, expected_keys) < 1e-3 and relative_error(values, expected_values) < 1e-3


@pytest.mark.parametrize("warp_rows", [8, 16])
@pytest.mark.parametrize("batch", [1, 2, 3, 4])
@pytest.mark.parametrize("size, rows", [(256, 40), (1024, 301), (2064, 37), (3072, 30), (6144, 17), (9216, 9)])
def test_weights_of_8_bits(size, rows, batch, warp_rows, monkeypatch):
    """Plain, gated behind a norm, and onto the stream behind the norm of heads, against the matrix they stand for."""
    from flashslm.inference.fused import projection, tilings
    from flashslm.inference.fused.projection import Norm, project
    from flashslm.inference.fused.stream import Stream
    from flashslm.ops.int8_weights import quantise_rows

    def tiling(rows, size, gated, int8):
        found = tilings.tiling(rows, size, gated, int8)
        return tilings.cut(size, found.depth, found.strips, found.in_registers, found.in_shared, warp_rows)

    monkeypatch.setattr(projection, "tiling", tiling)

    x, norm = normal(batch, size), torch.rand(size, device="cuda") + 0.5
    x[:, 5] *= 100
    weight = quantise_rows(normal(2 * rows, size) * size**-0.5)
    exact = weight.dequantised().double()
    out = torch.full((batch, 2 * rows), torch.nan, device="cuda")
    project(product(x, weight, out))
    assert relative_error(out, x.double() @ exact.T) < 1e-4
    gated = torch.full((batch, rows), torch.nan, device="cuda", dtype=torch.bfloat16)
    project(product(x, weight, gated, Norm(norm, EPS), swiglu=True))
    gate, up = (F.rms_norm(x.double(), (size,), norm.double(), EPS) @ exact.T).chunk(2, dim=1)
    assert relative_error(gated, F.silu(gate) * up) < TOLERANCE
    if size % 64:
        return
    stream = Stream(torch.ones(batch, 2 * rows, device="cuda"), torch.empty(batch, 2 * rows, device="cuda").bfloat16())
    project(product(x, weight, stream, Norm(norm[:64], EPS, 64)))
    heads = F.rms_norm(x.double().view(batch, -1, 64), (64,), norm[:64].double(), EPS).flatten(1)
    assert relative_error(stream.exact, 1 + heads @ exact.T) < TOLERANCE

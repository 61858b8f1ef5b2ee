"""One token of grouped-query attention over a static cache, the keys split among programs (flash decoding).

The programs of a split share a group of query heads and read its keys and values once. The new key and value are
rotated and appended on the way; the last split scores them from registers.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from flashslm.inference.fused.step_plan import AttentionPlan

MIN_BLOCK_M = 16  # the smallest operand of a tensor-core product
COMBINED_LANES = 32  # value channels that a program combines


@triton.jit
def _rotated(row_ptr, cos_ptr, sin_ptr, norm_ptr, position, eps, HEAD_DIM: tl.constexpr, NORM: tl.constexpr):
    """Heads [R, HEAD_DIM] given by their row pointers [R, 1]: both rotated halves, each [R, HEAD_DIM / 2] in fp32."""
    half = tl.arange(0, HEAD_DIM // 2)
    low = tl.load(row_ptr + half[None, :]).to(tl.float32)
    high = tl.load(row_ptr + HEAD_DIM // 2 + half[None, :]).to(tl.float32)
    if NORM:
        scale = tl.rsqrt((tl.sum(low * low, axis=1) + tl.sum(high * high, axis=1)) / HEAD_DIM + eps)[:, None]
        low = low * scale * tl.load(norm_ptr + half).to(tl.float32)[None, :]
        high = high * scale * tl.load(norm_ptr + HEAD_DIM // 2 + half).to(tl.float32)[None, :]
    cos = tl.load(cos_ptr + position * (HEAD_DIM // 2) + half)[None, :]
    sin = tl.load(sin_ptr + position * (HEAD_DIM // 2) + half)[None, :]
    return low * cos - high * sin, high * cos + low * sin


@triton.jit
def _rescaled(scores_max, best, total, mixed):
    """Sums of an online softmax for a new highest score."""
    larger = tl.maximum(best, scores_max)
    shrink = tl.exp2(best - larger)
    return larger, total * shrink, mixed * shrink[:, None]


@triton.jit
def _with_block(scores, values, best, total, mixed):
    """The sums with a block of keys."""
    best, total, mixed = _rescaled(tl.max(scores, axis=1), best, total, mixed)
    weights = tl.exp2(scores - best[:, None])
    return best, total + tl.sum(weights, axis=1), mixed + tl.dot(weights.to(values.dtype), values)


@triton.jit
def _nothing_seen(BLOCK_M: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Sums of an online softmax over no keys: highest score, weights, weighted values."""
    best = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    return best, tl.zeros((BLOCK_M,), tl.float32), tl.zeros((BLOCK_M, HEAD_DIM), tl.float32)


@triton.jit
def _with_new_key(q, sums, rows, slots, rotation, length, eps, scale, HEAD_DIM: tl.constexpr, NORM: tl.constexpr):
    """The sums with the new key, which is rotated and stored with its value in its slot."""
    q_low, q_high = q
    best, total, mixed = sums
    k_row, v_row = rows
    slot_k_ptr, slot_v_ptr = slots
    cos_ptr, sin_ptr, norm_ptr = rotation
    half, lane = tl.arange(0, HEAD_DIM // 2), tl.arange(0, HEAD_DIM)
    k_low, k_high = _rotated(k_row, cos_ptr, sin_ptr, norm_ptr, length, eps, HEAD_DIM, NORM)
    k_low, k_high = k_low.to(q_low.dtype), k_high.to(q_low.dtype)
    value = tl.load(v_row + lane)
    scores = tl.sum(q_low.to(tl.float32) * k_low.to(tl.float32), axis=1)
    scores = (scores + tl.sum(q_high.to(tl.float32) * k_high.to(tl.float32), axis=1)) * scale
    best, total, mixed = _rescaled(scores, best, total, mixed)
    weight = tl.exp2(scores - best)
    tl.store(slot_k_ptr + half[None, :], k_low)
    tl.store(slot_k_ptr + HEAD_DIM // 2 + half[None, :], k_high)
    tl.store(slot_v_ptr + lane, value)
    return best, total + weight, mixed + weight[:, None] * value.to(tl.float32)[None, :]


@triton.jit
def _store_sums(
    sums, partial_ptr, weight_ptr, out_ptr, head, split, real, SPLITS: tl.constexpr, HEAD_DIM: tl.constexpr
):
    """The output of each head, or a split's part in it."""
    best, total, mixed = sums
    lane = tl.arange(0, HEAD_DIM)
    if SPLITS == 1:
        tl.store(out_ptr + head[:, None] * HEAD_DIM + lane[None, :], mixed / total[:, None], mask=real[:, None])
    else:
        place = head * SPLITS + split
        tl.store(partial_ptr + place[:, None] * HEAD_DIM + lane[None, :], mixed, mask=real[:, None])
        tl.store(weight_ptr + place * 2, best, mask=real)
        tl.store(weight_ptr + place * 2 + 1, total, mask=real)


@triton.jit
def _attend(
    inputs_ptr,
    q_norm_ptr,
    k_norm_ptr,
    cos_ptr,
    sin_ptr,
    lengths_ptr,
    keys_ptr,
    values_ptr,
    out_ptr,
    partial_ptr,
    weight_ptr,
    slots,
    eps,
    GROUPS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    SPLITS: tl.constexpr,
    NORM: tl.constexpr,
    STAGES: tl.constexpr,
):
    b, g, split = tl.program_id(0) // GROUPS, tl.program_id(0) % GROUPS, tl.program_id(1)
    length = tl.load(lengths_ptr + b).to(tl.int32)
    half, lane, row = tl.arange(0, HEAD_DIM // 2), tl.arange(0, HEAD_DIM), tl.arange(0, BLOCK_M)
    cache, inputs = tl.program_id(0).to(tl.int64) * slots * HEAD_DIM, inputs_ptr + b * GROUPS * (GROUP + 2) * HEAD_DIM
    q_row = inputs + (g * GROUP + tl.minimum(row, GROUP - 1))[:, None] * HEAD_DIM
    dtype = keys_ptr.dtype.element_ty
    scale = 1.4426950408889634 / tl.sqrt_rn(HEAD_DIM * 1.0)  # exponentials are powers of two
    best, total, mixed = _nothing_seen(BLOCK_M, HEAD_DIM)
    q_low, q_high = tl.zeros((BLOCK_M, HEAD_DIM // 2), dtype), tl.zeros((BLOCK_M, HEAD_DIM // 2), dtype)
    gdc_launch_dependents()
    each = tl.cdiv(tl.cdiv(length, SPLITS), BLOCK_N) * BLOCK_N
    first, last = split * each, tl.minimum(split * each + each, length)
    for start in tl.range(first, last, BLOCK_N, num_stages=STAGES):
        at = start + tl.arange(0, BLOCK_N)
        seen = at < last
        place = cache + at[:, None].to(tl.int64) * HEAD_DIM
        k_lower = tl.load(keys_ptr + place + half[None, :], mask=seen[:, None], other=0.0)
        k_upper = tl.load(keys_ptr + place + HEAD_DIM // 2 + half[None, :], mask=seen[:, None], other=0.0)
        v = tl.load(values_ptr + place + lane[None, :], mask=seen[:, None], other=0.0)
        if start == first:
            gdc_wait()  # in the loop, so that the copies of the first keys are under way before
            low, high = _rotated(q_row, cos_ptr, sin_ptr, q_norm_ptr, length, eps, HEAD_DIM, NORM)
            q_low, q_high = low.to(dtype), high.to(dtype)
        scores = tl.dot(q_low, tl.trans(k_lower)) + tl.dot(q_high, tl.trans(k_upper))
        scores = tl.where(seen[None, :], scores * scale, -float("inf"))
        best, total, mixed = _with_block(scores, v, best, total, mixed)
    gdc_wait()
    if split == SPLITS - 1:
        low, high = _rotated(q_row, cos_ptr, sin_ptr, q_norm_ptr, length, eps, HEAD_DIM, NORM)
        k_row, slot = inputs + (GROUPS * GROUP + g) * HEAD_DIM, cache + length.to(tl.int64) * HEAD_DIM
        q, sums = (low.to(dtype), high.to(dtype)), (best, total, mixed)
        new = (k_row + tl.zeros((1, 1), tl.int32), k_row + GROUPS * HEAD_DIM)
        places = (keys_ptr + slot, values_ptr + slot)
        rotation = (cos_ptr, sin_ptr, k_norm_ptr)
        best, total, mixed = _with_new_key(q, sums, new, places, rotation, length, eps, scale, HEAD_DIM, NORM)
    head = b * GROUPS * GROUP + g * GROUP + row
    _store_sums((best, total, mixed), partial_ptr, weight_ptr, out_ptr, head, split, row < GROUP, SPLITS, HEAD_DIM)


@triton.jit
def _combine(
    partial_ptr,
    weight_ptr,
    out_ptr,
    SPLITS: tl.constexpr,
    PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    LANES: tl.constexpr,
):
    split, lane = tl.arange(0, PADDED), tl.program_id(1) * LANES + tl.arange(0, LANES)
    real = split < SPLITS
    at = tl.program_id(0) * SPLITS + split
    gdc_launch_dependents()
    gdc_wait()
    best = tl.load(weight_ptr + at * 2, mask=real, other=-float("inf"))
    total = tl.load(weight_ptr + at * 2 + 1, mask=real, other=0.0)
    weight = tl.exp2(best - tl.max(best, axis=0))
    mixed = tl.load(partial_ptr + at[:, None] * HEAD_DIM + lane[None, :], mask=real[:, None], other=0.0)
    out = tl.sum(mixed * weight[:, None], axis=0) / tl.sum(total * weight, axis=0)
    tl.store(out_ptr + tl.program_id(0) * HEAD_DIM + lane, out)


class Splits(NamedTuple):
    """Work space of a split decode: every split's sum of values, its highest score and the sum of its weights."""

    number: int
    mixed: Tensor  # fp32 [B·H, splits, K]
    weights: Tensor  # fp32 [B·H, splits, 2]
    plan: AttentionPlan

    @classmethod
    def allocate(cls, plan: AttentionPlan, heads: int, keys_BGSK: Tensor) -> "Splits":
        """For a cache of keys, with so many query heads."""
        batch, groups, slots, head = keys_BGSK.shape
        count = plan.splits(batch * groups, slots, 2 * head * keys_BGSK.element_size())
        shape, device = (batch * heads, count), keys_BGSK.device
        empty = torch.empty(*shape, head, device=device), torch.empty(*shape, 2, device=device)
        return cls(count, *empty, plan)


class Rotation(NamedTuple):
    """Tables [slots, K / 2] of the angles, fp32, and the norms of q and k, if the model has them."""

    cos: Tensor
    sin: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None
    eps: float


def attention_decode(
    inputs_BR: Tensor,
    rotation: Rotation,
    lengths_B: Tensor,
    keys_BGSK: Tensor,
    values_BGSK: Tensor,
    out_BD: Tensor,
    splits: Splits,
) -> None:
    """Attention on [q | k | v] (not rotated) at `lengths_B`, where the new key and value are stored."""
    batch, groups, slots, head = keys_BGSK.shape
    group = out_BD.shape[1] // head // groups
    normed = rotation.q_norm is not None
    _attend[(batch * groups, splits.number)](
        inputs_BR,
        rotation.q_norm if normed else inputs_BR,
        rotation.k_norm if normed else inputs_BR,
        rotation.cos,
        rotation.sin,
        lengths_B,
        keys_BGSK,
        values_BGSK,
        out_BD,
        splits.mixed,
        splits.weights,
        slots,
        rotation.eps,
        GROUPS=groups,
        GROUP=group,
        BLOCK_M=max(MIN_BLOCK_M, triton.next_power_of_2(group)),
        HEAD_DIM=head,
        BLOCK_N=splits.plan.keys,
        SPLITS=splits.number,
        NORM=normed,
        STAGES=splits.plan.stages,
        num_warps=splits.plan.warps,
        launch_pdl=True,
    )
    if splits.number > 1:
        _combine[(batch * groups * group, max(1, head // COMBINED_LANES))](
            splits.mixed,
            splits.weights,
            out_BD,
            SPLITS=splits.number,
            PADDED=triton.next_power_of_2(splits.number),
            HEAD_DIM=head,
            LANES=min(head, COMBINED_LANES),
            num_warps=4,
            launch_pdl=True,
        )

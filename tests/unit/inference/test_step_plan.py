"""Plans of a fused step: which one a batch takes, into how many parts attention's keys go, what that should cost."""

import pytest

from flashslm.inference.fused.step_plan import MOST_VECTORS, AttentionPlan, StepPlan, usual_plan, usual_tile
from flashslm.inference.fused.tilings import MAX_BATCH

SMS, WAVE = 132, 396
IN_WAVES = AttentionPlan(programs=WAVE, whole_waves=True)
# H200, commit 3d8aa88, 8k tokens: microseconds per attention layer at (pairs of a sequence and a key head, keys), less
# 14 (Qwen3-0.6B) and 16 (Nemotron-Flash-1B) for its products, which are estimates.
MEASURED_US = {
    (128, 8160): 125.8, (256, 8160): 266.9, (512, 8160): 529.8,
    (64, 8416): 70.4, (128, 8416): 130.5, (256, 8416): 277.3,
}  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, MAX_BATCH, MAX_BATCH + 1, 8, 64, 1000])
def test_a_batch_takes_the_form_that_was_measured(batch):
    assert usual_plan(batch) == StepPlan("vector" if batch <= MAX_BATCH else "matrix", AttentionPlan())


def test_a_vector_product_takes_few_sequences():
    StepPlan("vector").check(MOST_VECTORS)
    StepPlan("tiled").check(1000)
    with pytest.raises(ValueError, match=r"'vector' for 9 sequences: it takes up to 8; choose 'tiled' or 'matrix'"):
        StepPlan("vector").check(MOST_VECTORS + 1)


@pytest.mark.parametrize(
    "pairs, splits", [(8, 33), (16, 17), (32, 9), (64, 5), (128, 3), (256, 2), (264, 1), (512, 1), (9999, 1)]
)
def test_at_least_two_programs_of_an_sm(pairs, splits):
    assert AttentionPlan().splits(pairs, 8224) == splits


@pytest.mark.parametrize("plan", [AttentionPlan(), AttentionPlan(keys=32), IN_WAVES])
@pytest.mark.parametrize("pairs", [1, 3, 8, 100, 2000])
@pytest.mark.parametrize("slots", [1, 63, 64, 130, 8224])
def test_no_split_is_shorter_than_a_block(plan, pairs, slots):
    assert 1 <= plan.splits(pairs, slots) <= max(1, slots // plan.keys)


@pytest.mark.parametrize("case", MEASURED_US, ids=str)
def test_the_model_agrees_with_what_was_measured(case):
    pairs, keys = case
    plan = AttentionPlan(programs=WAVE)  # as many run at a time, whatever the number of splits was chosen for
    assert plan.modelled_us(pairs, keys, AttentionPlan().splits(pairs, keys)) == pytest.approx(
        MEASURED_US[case], rel=0.03
    )


@pytest.mark.parametrize("pairs", [8, 16, 32, 64, 128, 256, 512, 296])
@pytest.mark.parametrize("keys", [1024, 8224, 32_800])
def test_whole_waves_cost_no_more_than_another_split(pairs, keys):
    best = IN_WAVES.modelled_us(pairs, keys, IN_WAVES.splits(pairs, keys))
    assert all(best <= IN_WAVES.modelled_us(pairs, keys, n) for n in range(1, min(keys // 64, 8 * WAVE // pairs) + 1))


def test_a_quarter_of_a_wave_is_not_left_over():
    """512 programs of 2 MB on 396 places: the last 116 take almost a third of the time."""
    assert IN_WAVES.modelled_us(256, 8192, 2) > 1.08 * IN_WAVES.modelled_us(256, 8192, IN_WAVES.splits(256, 8192))
    assert IN_WAVES.modelled_us(512, 8192, 1) > 1.05 * IN_WAVES.modelled_us(512, 8192, IN_WAVES.splits(512, 8192))


@pytest.mark.parametrize("batch", [1, 5, 16, 17, 33, 64, 128])
@pytest.mark.parametrize("rows, size", [(1, 8), (1024, 3072), (4096, 1024), (6144, 2048), (151_936, 1024)])
def test_a_tile_of_powers_of_two(rows, size, batch):
    tile = usual_tile(rows, size, batch)
    assert all(value & (value - 1) == 0 and value >= 16 for value in tile[:2])
    buffered = (tile.stages - 1) * 2 * (2 * tile.rows + 2 * min(64, max(16, batch))) * tile.columns
    assert buffered <= 227 * 1024, "a block's shared memory"


def test_few_rows_make_many_programs():
    assert 1024 // usual_tile(1024, 3072, 8).rows >= SMS // 4

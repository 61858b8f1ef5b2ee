"""What is measured and how often a layer is repeated, without a GPU."""

from dataclasses import replace

import pytest

from flashslm.config import ModelConfig, OperatorSizes, ProfilingConfig
from flashslm.models.accounting import operator_parameters, parameters
from flashslm.profiling import plan
from flashslm.profiling.latency_table import EntryKey
from flashslm.profiling.plan import (
    CALL_BYTES,
    LAYERS_A_CALL,
    MAX_COPIES,
    MIN_COPIES,
    ProfilingPlan,
    Repetition,
    repetition,
    resident_bytes,
)

SIZES = ModelConfig(head_dim=128, num_meta_tokens=256)
VOCAB_SIZE = 131_072
L2_BYTES = 60 << 20  # an H200's
CONFIG = ProfilingConfig(widths=(2048, 1024), contexts=(8192, 1024), batches=(1, 256), operators="DMAFW")
PLAN = ProfilingPlan(CONFIG, SIZES, VOCAB_SIZE)


def of(operator: str, width: int = 2048, context: int = 1024, batch: int = 1) -> EntryKey:
    return EntryKey(operator, width, context, batch)


def repeated(key: EntryKey, vocab_size: int = VOCAB_SIZE, sizes: ModelConfig = SIZES) -> Repetition:
    return repetition(key, ProfilingPlan(CONFIG, sizes, vocab_size).layer(key), L2_BYTES, value_bytes=2)


def test_only_attention_is_measured_at_every_context():
    keys = PLAN.entry_keys()
    assert len(keys) == len(set(keys)) == 2 * 2 * (4 + 2 * 2)
    assert {key.context for key in keys if key.operator in "AW"} == {1024, 8192}
    assert {key.context for key in keys if key.operator not in "AW"} == {1024}
    assert PLAN.recorded_contexts(of("D")) == [1024, 8192]
    assert PLAN.recorded_contexts(of("W", context=8192)) == [8192]


@pytest.mark.parametrize("operator", "DMAF")
@pytest.mark.parametrize("width", [1024, 3072])
def test_copies_do_not_fit_the_l2_and_passes_fill_a_call(operator, width):
    key = of(operator, width)
    copies, passes = repeated(key)
    layer = PLAN.layer(key)
    weights = copies * operator_parameters(layer, operator) * 2
    assert weights >= 2 * L2_BYTES and copies >= MIN_COPIES
    assert copies == MIN_COPIES or weights * (copies - 1) / copies < 2 * L2_BYTES, "no more than it takes"
    layers = min(LAYERS_A_CALL, CALL_BYTES // resident_bytes(layer, 1024, 1, 2))
    assert layers <= copies * passes < layers + copies


def test_tiny_layers_stay_in_the_cache_as_they_do_in_a_model():
    assert repeated(of("D", 64), sizes=ModelConfig(head_dim=32)) == (MAX_COPIES, 1)


def test_a_layer_with_large_caches_needs_no_copies_and_no_passes():
    large = of("A", context=32_768, batch=256)
    assert resident_bytes(PLAN.layer(large), 32_768, 256, 2) > 16e9
    assert repeated(large) == (1, 1)
    medium = of("A", context=8192, batch=32)  # 0.55 GB a layer
    copies, passes = repeated(medium)
    one = resident_bytes(PLAN.layer(medium), 8192, 32, 2)
    assert copies >= MIN_COPIES and copies * passes * one < CALL_BYTES + copies * one


def test_the_head_is_alone_unless_it_fits_the_l2():
    assert repeated(of("head")) == (1, 1)
    small = of("head", 1024)
    copies, passes = repeated(small, vocab_size=4096)
    embedding = parameters(replace(PLAN, vocab_size=4096).layer(small))["embedding"] * 2
    assert (copies - 1) * embedding < 2 * L2_BYTES <= copies * embedding and passes == 1


@pytest.mark.parametrize("operator", ["D", "F", "head"])
def test_weights_of_8_bits_need_more_copies_where_a_step_reads_them(operator):
    def copies(batch, vocabulary, int8):
        key = of(operator, batch=batch)
        layer = replace(PLAN, vocab_size=vocabulary).layer(key)
        return repetition(key, layer, 4 * L2_BYTES, 2, int8).copies

    assert copies(1, 16_384, True) in range(2 * copies(1, 16_384, False) - 1, 2 * copies(1, 16_384, False) + 1)
    assert copies(8, 16_384, True) == copies(8, 16_384, False)


def test_weights_of_8_bits_are_copies_beside_the_models_own(monkeypatch):
    a = PLAN.architecture("DFA", 1024)
    total, plain = parameters(a)["total"], resident_bytes(a, 1024, 1, 2)
    assert resident_bytes(a, 1024, 1, 2, int8=True) == plain + total
    on_cpu = PLAN.changed(device="cpu", weights="int8", dtype="bfloat16")
    assert on_cpu.resident_bytes(a, 1024, 1) == plain, "only fused steps have copies"
    monkeypatch.setattr(plan, "pick_device", lambda device: "cuda")
    assert on_cpu.resident_bytes(a, 1024, 1) == plain + total


def test_layer_and_head_have_nothing_of_each_other():
    layer, head = (PLAN.layer(of(o)) for o in ("M", "head"))
    assert (layer.operators, layer.vocab_size) == ("M", 16)
    assert (head.operators, head.vocab_size) == ("", VOCAB_SIZE)


def test_memory_is_weights_caches_and_logits():
    a = PLAN.layer(of("A", context=1000, batch=3))
    caches = 2 * a.num_kv_heads * 128 * (1000 + 256) * 2
    assert resident_bytes(a, 1000, 3, 2) == parameters(a)["total"] * 2 + 3 * (caches + 2 * 4 * a.vocab_size)


def test_a_changed_plan_differs_in_its_profiling_section_alone():
    changed = PLAN.changed(widths=(512,), batches=(3,))
    assert {(key.width, key.batch) for key in changed.entry_keys()} == {(512, 3)}
    assert (changed.sizes, changed.vocab_size) == (SIZES, VOCAB_SIZE) and PLAN.profiling == CONFIG


@pytest.mark.parametrize(("dtype", "value_bytes"), [("auto", 4), ("float32", 4), ("bfloat16", 2)])
def test_a_weight_s_bytes_are_those_of_the_dtype_that_is_measured(dtype, value_bytes):
    assert PLAN.changed(device="cpu", dtype=dtype).value_bytes == value_bytes


def test_entries_beyond_the_memory_are_left_out_with_the_reason():
    plan = PLAN.changed(
        device="cpu", dtype="bfloat16", operators="DMAF", widths=(2048,), contexts=(32_768,), batches=(1, 256)
    )
    assert plan.split_by_memory(float("inf")) == (plan.entry_keys(), [])
    kept, left_out = plan.split_by_memory(8e9)
    assert kept == [key for key in plan.entry_keys() if key != of("A", context=32_768, batch=256)]
    assert [entry.key for entry in left_out] == [tuple(of("A", context=32_768, batch=256))]
    assert left_out[0].reason == "needs 17.3 GB of memory, 8.0 GB are free"


def test_further_sizes_are_measured_where_they_are_possible_and_others():
    """At width 192 heads of 128 are not possible, and at 128 a ratio of 3.5 is an FFN of 384, as 3 is."""
    sizes = OperatorSizes(ffn_ratio=(3.0, 3.5, 6.0), mamba_state=(64, 128), head_dim=(32, 128))
    plain = ProfilingPlan(
        ProfilingConfig(widths=(128, 192), contexts=(64, 8), operators="DMAFG"), ModelConfig(), VOCAB_SIZE
    )
    plan = plain.changed(sizes=sizes)
    assert [key for key in plan.entry_keys() if key.size is None] == plain.entry_keys()
    further = [key for key in plan.entry_keys() if key.size is not None]
    assert len(set(further)) == len(further)
    found = {(key.operator, key.width, key.size) for key in further}
    heads = {(o, w, s) for o in "DAG" for w, s in ((128, 32), (128, 128), (192, 32))}
    assert found == heads | {("M", 128, 64), ("M", 192, 64), ("F", 128, 768), ("F", 192, 640), ("F", 192, 1152)}
    assert {key.context for key in further if key.operator == "A"} == {8, 64}
    for key in further:
        layer = plan.layer(key)
        field = {"M": layer.mamba_state, "F": layer.ffn_size}.get(key.operator, layer.head_dim)
        assert (layer.operators, layer.hidden_size, field) == (key.operator, key.width, key.size)


def test_a_further_size_beyond_the_memory_is_left_out_by_itself():
    plan = PLAN.changed(device="cpu", dtype="bfloat16", operators="DMAF", widths=(2048,), batches=(1,)).changed(
        sizes=OperatorSizes(ffn_ratio=(64.0,))
    )
    kept, left_out = plan.split_by_memory(1.2e9)
    assert [entry.key for entry in left_out] == [("F", 2048, 1024, 1, 64 * 2048)]
    assert all(key.size is None for key in kept)

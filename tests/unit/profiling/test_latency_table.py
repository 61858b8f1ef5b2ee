import json

import pytest

from flashslm.config import LatencyConfig, ModelConfig, OperatorSizes
from flashslm.models.accounting import parameters, state_bytes
from flashslm.models.architecture import build_architecture
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.latency_table import LatencyTable, LeftOut
from flashslm.profiling.whole_model import StepOverhead
from tests.unit.search.synthetic import WIDTHS, make_sized_table, make_table

SIZES = ModelConfig()


@pytest.fixture(scope="module")
def table():
    return make_table()


def architecture(operators="DFMFAF", width=128, sizes=SIZES, vocab_size=512):
    return build_architecture(operators, width, sizes, vocab_size)


def test_prediction_is_the_sum_over_operators_and_the_head(table):
    # Twice the cost at width 64: D 1.0, M 1.5, A 1.5 at context 1024, three F 0.5, head 2.0.
    assert table.predict_ms(architecture(), 1024, 1) == pytest.approx(2 * (1.0 + 1.5 + 1.5 + 3 * 0.5 + 2.0))
    assert table.predict_ms(architecture("F" * 10), 0, 1) == pytest.approx(2 * (10 * 0.5 + 2.0))


@pytest.mark.parametrize(("context", "attention_ms"), [(0, 0.75), (256, 0.9375), (512, 1.125), (1024, 1.5)])
def test_prediction_is_linear_in_context_between_measured_ones(table, context, attention_ms):
    assert table.predict_ms(architecture("A", 64), context, 1) == pytest.approx(attention_ms + 2.0)


def test_context_leaves_the_other_operators_alone(table):
    assert table.predict_ms(architecture("DMF"), 100, 1) == table.predict_ms(architecture("DMF"), 900, 1)


@pytest.mark.parametrize(
    ("change", "context", "batch", "reason"),
    [
        ({"width": 320}, 512, 1, r"width 320 was not measured; measured: operators DMAF, widths \[64, 128, 192, 256\]"),
        ({}, 2048, 1, r"context 2048 lies outside .* contexts \[0, 1024\].*profiling.contexts"),
        ({}, 512, 4, r"batch 4 was not measured.*batches \[1\]"),
        ({"operators": "DG"}, 512, 1, "latency of G at width 128, .* was not measured"),
        ({"vocab_size": 1024}, 512, 1, r"differ from the table's: vocab_size 1024 \(table: 512\): measure"),
        ({"sizes": ModelConfig(head_dim=32)}, 512, 1, r"num_heads 4 \(table: 2\), head_dim 32 \(table: 64\)"),
        ({"sizes": ModelConfig(mamba_state=64)}, 512, 1, r"table's: mamba_state 64 \(table: 128\)"),
        ({"sizes": ModelConfig(qk_norm=True)}, 512, 1, r"table's: qk_norm True \(table: False\)"),
        ({"operators": "WF", "sizes": ModelConfig(window=64)}, 512, 1, r"table's: window 64 \(table: 512\)"),
    ],
)
def test_what_was_not_measured_is_refused(table, change, context, batch, reason):
    with pytest.raises(ValueError, match=reason):
        table.predict_ms(architecture(**change), context, batch)


def test_sizes_without_an_effect_on_a_decode_step_are_free(table):
    other = ModelConfig(num_meta_tokens=8, max_position_embeddings=128, window=64)
    assert table.predict_ms(architecture(sizes=other), 512, 1) == table.predict_ms(architecture(), 512, 1)


def test_overhead_of_a_batch_is_added_once_a_step_and_once_a_layer(table):
    overheads = (
        StepOverhead(batch=1, step_ms=0.5, layer_ms=-0.1, models=6),
        StepOverhead(batch=8, step_ms=9.0, layer_ms=9.0, models=6),
    )
    calibrated = table.model_copy(update={"overheads": overheads})
    plain = table.predict_ms(architecture(), 512, 1)
    assert calibrated.predict_ms(architecture(), 512, 1) == pytest.approx(plain + 0.5 - 6 * 0.1)
    assert calibrated.sum_ms(architecture(), 512, 1) == plain == table.sum_ms(architecture(), 512, 1)


def test_an_overhead_for_the_l2_cache_grows_with_what_a_step_lacks_to_fill_it(table):
    """A step of six operators of width 128 moves 2.9 MB; a table of 8 bits on a GPU says a quarter of the weights."""
    overhead = StepOverhead(batch=1, step_ms=0.0, layer_ms=0.0, l2_ms_per_mb=-0.01, l2_mb=10.0, models=6)
    calibrated = table.model_copy(update={"overheads": (overhead,)})
    small, plain = architecture(), table.predict_ms(architecture(), 512, 1)
    moved_mb = table.step_mb(small, 512, 1)
    weights_mb = 4 * (parameters(small)["total"] - parameters(small)["meta_tokens"]) / 1e6
    tokens = 512 + small.num_meta_tokens
    assert moved_mb == pytest.approx(weights_mb + (4 * tokens * 2 * 64 * 1 + 2 * state_bytes(small, 4, 4)) / 1e6)
    assert calibrated.predict_ms(small, 512, 1) == pytest.approx(plain - 0.01 * (10 - moved_mb))
    filled = overhead.model_copy(update={"l2_mb": 0.9 * moved_mb})
    assert table.model_copy(update={"overheads": (filled,)}).predict_ms(small, 512, 1) == plain
    gpu = table.device.model_copy(update={"kind": "cuda"})
    rounded = table.model_copy(update={"device": gpu, "weights": "int8"})
    assert rounded.step_mb(small, 512, 1) == pytest.approx(moved_mb - 0.75 * weights_mb)


def test_tables_from_before_there_was_a_term_for_the_cache_mean_what_they_did(table):
    old = {"batch": 1, "step_ms": 0.5, "layer_ms": -0.1, "models": 6}
    without = table.model_dump(mode="json", exclude={"overheads", "calibration"})
    assert LatencyTable.model_validate(without) == table
    assert LatencyTable.model_validate(without | {"overheads": [old]}).predict_ms(architecture(), 512, 1) == (
        pytest.approx(table.predict_ms(architecture(), 512, 1) + 0.5 - 6 * 0.1)
    )


def test_what_was_left_out_says_why(table):
    key = ("A", 128, 1024, 1, None)
    reason = "needs 9.0 GB of memory, 8.0 GB are free"
    left_out = LeftOut(operator="A", width=128, context=1024, batch=1, reason=reason)
    fields = table.model_dump() | {"entries": [e for e in table.entries if e.key != key], "left_out": [left_out]}
    smaller = LatencyTable.model_validate(fields)
    assert table.covers("DA", 128, 1024, 1) and not smaller.covers("DA", 128, 1024, 1)
    assert smaller.covers("DF", 128, 1024, 1) and not smaller.covers("DF", 128, 1000, 1)
    assert smaller.predict_ms(architecture("DF"), 1024, 1) == table.predict_ms(architecture("DF"), 1024, 1)
    with pytest.raises(ValueError, match=f"A at width 128, context 1024, batch 1 was not measured .it {reason}.;"):
        smaller.predict_ms(architecture(), 1024, 1)


def test_tables_of_other_weights_are_refused(table):
    """Those of earlier versions say nothing of it: theirs are the model's own."""
    earlier = LatencyTable.model_validate(table.model_dump(exclude={"weights"}))
    assert earlier.require_weights("full") == table
    other = table.model_copy(update={"weights": "int8"})
    assert other.require_weights("int8") is other
    for made, wanted in ((earlier, "int8"), (other, "full")):
        with pytest.raises(ValueError, match=f"weights in '{made.weights}', profiling.weights is '{wanted}': measure"):
            made.require_weights(wanted)


def test_json_round_trip(table):
    text = json.dumps(table.model_dump(mode="json"))
    again = LatencyTable.model_validate(json.loads(text))
    assert again == table
    assert again.predict_ms(architecture(), 512, 1) == table.predict_ms(architecture(), 512, 1)
    assert again.device.id == table.device.id


def test_budget_is_absolute_or_relative_to_the_reference(table):
    assert latency_budget_ms(table, LatencyConfig(target_ms=7.5), SIZES, 512) == 7.5
    relative = LatencyConfig(context=512, reference_operators="DFMF", reference_width=WIDTHS[0], reference_factor=1.2)
    assert latency_budget_ms(table, relative, SIZES, 512) == pytest.approx(1.2 * (1.0 + 1.5 + 2 * 0.5 + 2.0))


FURTHER = OperatorSizes(ffn_ratio=(6.0,), mamba_state=(64,), head_dim=(32,))


@pytest.mark.parametrize(
    ("sizes", "expected_ms"),
    [
        ({"ffn_ratio": 6.0}, 2 * (1.0 + 1.5 + 1.5 + 2.0 + 2 * 3 * 0.5)),
        ({"mamba_state": 64}, 2 * (1.0 + 1.5 / 2 + 1.5 + 2.0 + 3 * 0.5)),
        ({"head_dim": 32}, 2 * (1.0 / 2 + 1.5 + 1.5 / 2 + 2.0 + 3 * 0.5)),
        ({"ffn_ratio": 6.0, "mamba_state": 64, "head_dim": 32}, 2 * (0.5 + 0.75 + 0.75 + 2.0 + 2 * 3 * 0.5)),
    ],
)
def test_an_architecture_is_priced_by_its_own_sizes(sizes, expected_ms):
    table = make_sized_table(FURTHER)
    assert table.predict_ms(architecture(sizes=ModelConfig(**sizes)), 1024, 1) == pytest.approx(expected_ms)
    assert table.predict_ms(architecture(), 1024, 1) == make_table().predict_ms(architecture(), 1024, 1)


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        ({"ffn_ratio": 4.0}, r"ffn_size 512 \(table: 384\)"),
        ({"head_dim": 128}, r"num_heads 1 \(table: 2\), head_dim 128 \(table: 64\)"),
        ({"head_dim": 32, "kv_group": 1}, r"num_kv_heads 4 \(table: 1\): measure"),
        ({"ffn_ratio": 12.0}, r"latency of F with ffn_size 1536 at width 128, .* was not measured"),
    ],
)
def test_sizes_that_were_not_measured_there_are_refused(sizes, reason):
    """A ratio of 12 at width 128 is an FFN that was measured at width 256 alone."""
    with pytest.raises(ValueError, match=reason):
        make_sized_table(FURTHER).predict_ms(architecture(sizes=ModelConfig(**sizes)), 512, 1)


def test_entries_of_the_recipes_own_sizes_say_nothing_of_them():
    plain, sized = make_table().model_dump(mode="json"), make_sized_table(FURTHER).model_dump(mode="json")
    assert plain["entries"] == sized["entries"][: len(plain["entries"])]
    assert not any("size" in entry for entry in plain["entries"])
    further = sized["entries"][len(plain["entries"]) :]
    assert {(e["operator"], e["size"]) for e in further if e["width"] == 128} == {
        ("F", 768),
        ("M", 64),
        ("D", 32),
        ("A", 32),
    }
    assert LatencyTable.model_validate_json(json.dumps(sized)) == make_sized_table(FURTHER)

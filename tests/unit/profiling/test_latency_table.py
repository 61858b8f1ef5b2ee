import json

import pytest

from flashslm.config import LatencyConfig, ModelConfig
from flashslm.models.architecture import build_architecture
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.latency_table import LatencyTable
from tests.unit.search.synthetic import WIDTHS, make_table

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
        ({"width": 320}, 512, 1, r"width 320 was not measured; measured: widths \[64, 128, 192, 256\]"),
        ({}, 2048, 1, r"context 2048 lies outside .* contexts \[0, 1024\].*profiling.contexts"),
        ({}, 512, 4, r"batch 4 was not measured.*batches \[1\]"),
        ({"vocab_size": 1024}, 512, 1, "sizes .* differ from the table's"),
        ({"sizes": ModelConfig(head_dim=32)}, 512, 1, "sizes .* differ from the table's"),
        ({"sizes": ModelConfig(mamba_state=64)}, 512, 1, "sizes .* differ from the table's"),
    ],
)
def test_what_was_not_measured_is_refused(table, change, context, batch, reason):
    with pytest.raises(ValueError, match=reason):
        table.predict_ms(architecture(**change), context, batch)


def test_sizes_without_an_effect_on_a_decode_step_are_free(table):
    other = ModelConfig(num_meta_tokens=8, max_position_embeddings=128)
    assert table.predict_ms(architecture(sizes=other), 512, 1) == table.predict_ms(architecture(), 512, 1)


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

"""Parameter counts, by the account and by the model: the published ones where the model was published."""

import pytest
import torch

from flashslm.models.accounting import kv_bytes_per_token, parameters
from flashslm.models.hybrid import HybridLM
from flashslm.models.presets import PRESETS, preset

COUNTS = {
    "deltanet-1b": 966_602_496,
    "nemotron-flash-1b": 965_389_440,
    "nemotron-flash-3b": 2_749_998_624,
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
}


def test_the_count_of_every_preset_is_known():
    assert set(PRESETS) == set(COUNTS)


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_parameters_are_the_known_ones(name, count):
    with torch.device("meta"):
        model = HybridLM(preset(name))
    assert sum(p.numel() for p in model.parameters()) == count
    assert parameters(preset(name))["total"] == count


def test_key_value_cache_sizes():
    assert [kv_bytes_per_token(preset(name)) for name in COUNTS] == [0, 4096, 9216, 112 * 1024, 112 * 1024]


def test_qwen3_has_wide_heads_and_normalises_them():
    small = preset("qwen3-0.6b")
    assert (small.heads_size, small.hidden_size, small.qk_norm, small.rotary_theta) == (2048, 1024, True, 1e6)


def test_unknown_preset_names_the_known_ones():
    with pytest.raises(ValueError, match=r"preset 'gpt' is unknown: choose one of nemotron-flash-1b, .*qwen3-1.7b"):
        preset("gpt")

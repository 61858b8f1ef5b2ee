"""A winner at an end of a range of the search."""

from typing import Any

import pytest

from flashslm.config import SearchConfig
from flashslm.search.edges import edges

WIDTHS = (64, 128, 192)
HISTORY = [{"width": width} for width in (192, 64, 192)]


def found(best: dict[str, Any], **search: Any) -> list[str]:
    return edges(best, HISTORY, SearchConfig.model_validate({"widths": WIDTHS} | search))


@pytest.mark.parametrize(
    ("width", "said"),
    [
        (192, ["width 192 is the largest that was searched (as in 2 of 3 trials)"]),
        (128, []),
        (64, ["width 64 is the smallest that was searched (as in 1 of 3 trials)"]),
    ],
)
def test_a_width_at_an_end_is_named_with_the_trials_that_have_it(width: int, said: list[str]) -> None:
    assert found({"operators": "DF", "width": width}) == said


def test_a_single_width_was_not_searched() -> None:
    assert found({"operators": "DF", "width": 64}, widths=[64]) == []


def test_the_depth_limit_is_named() -> None:
    assert found({"operators": "DFMF", "width": 128}, max_operators=5) == []
    assert found({"operators": "DFMFF", "width": 128}, max_operators=5) == [
        "its 5 operators are as many as search.max_operators allows"
    ]


def test_sizes_at_an_end_are_named_where_the_operators_depend_on_them() -> None:
    sizes = {"ffn_ratio": [2, 3, 4], "head_dim": [64, 32], "mamba_state": [64]}
    best = {"width": 128, "sizes": {"ffn_ratio": 4.0, "head_dim": 32, "mamba_state": 64}}
    assert found({"operators": "MFDF"} | best, sizes=sizes) == [
        "ffn_ratio 4 is the largest that was searched",
        "head_dim 32 is the smallest that was searched",
    ]
    assert found({"operators": "MM"} | best, sizes=sizes) == []
    middle = {"width": 128, "sizes": {"ffn_ratio": 3, "head_dim": 64, "mamba_state": 64}}
    assert found({"operators": "MF"} | middle, sizes=sizes) == []

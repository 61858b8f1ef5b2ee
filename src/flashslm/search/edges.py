"""Where a search was bounded by its space: a winner at an end of a range may not be the best beyond it."""

from collections.abc import Mapping, Sequence
from typing import Any

from flashslm.config import SearchConfig
from flashslm.models.operator_spec import OPERATOR_SPECS
from flashslm.statistics import which_end


def edges(best: Mapping[str, Any], history: Sequence[Mapping[str, Any]], search: SearchConfig) -> list[str]:
    """Each range of which the winner has the largest or the smallest value, in words; `best` is of `history`.

    A range of one value was not searched, and neither was a size that none of the winner's operators depends on.
    """
    operators, found = best["operators"], list[str]()
    if end := which_end(best["width"], search.widths):
        shared = sum(trial["width"] == best["width"] for trial in history)
        found.append(f"width {best['width']} is the {end} that was searched (as in {shared} of {len(history)} trials)")
    if len(operators) == search.max_operators:
        found.append(f"its {len(operators)} operators are as many as search.max_operators allows")
    sized_by = {OPERATOR_SPECS[operator].sized_by for operator in operators}
    for name, value in best.get("sizes", {}).items():
        if name in sized_by and (end := which_end(value, getattr(search.sizes, name))):
            found.append(f"{name} {value:g} is the {end} that was searched")
    return found

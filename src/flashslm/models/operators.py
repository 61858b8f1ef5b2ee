"""From an operator's letter to its layer."""

from functools import cache
from importlib import import_module
from typing import cast

from flashslm.models.architecture import Architecture
from flashslm.models.interface import Operator
from flashslm.models.operator_spec import OPERATOR_SPECS


@cache
def layer_class(operator: str) -> type[Operator]:
    """The class of an operator's layer, as its row in `operator_spec` names it."""
    module, _, name = OPERATOR_SPECS[operator].layer.partition(":")
    return cast(type[Operator], getattr(import_module(module), name))


def build_operator(architecture: Architecture, operator: str) -> Operator:
    """Make one operator without its norm; weights are uninitialised."""
    return layer_class(operator)(architecture)

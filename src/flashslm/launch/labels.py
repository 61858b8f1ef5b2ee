"""How a task of a pipeline is called on every runner."""

from collections.abc import Mapping, Sequence
from typing import Any

# The same for every task of a run.
_COMMON_ARGUMENTS = {"code_digest", "config_digest", "device_digest", "image", "name", "source_digest"}
_LONGEST_TEXT = 40


def step_of(container: Mapping[str, Sequence[str]]) -> str:
    """The step that a container of a compiled pipeline runs.

    KFP's names of a component's second use in a pipeline, of its task and of its executor, end with `-2`.
    """
    arguments = container["args"]
    return arguments[arguments.index("--function_to_execute") + 1]


def step_label(step: str, arguments: Mapping[str, Any]) -> str:
    """The step and the short text arguments that distinguish the iterations of a loop: `pretrain weight_norm=on`."""
    texts = {k: v for k, v in arguments.items() if k not in _COMMON_ARGUMENTS and isinstance(v, str)}
    return " ".join([step, *(f"{key}={texts[key]}" for key in sorted(texts) if 0 < len(texts[key]) < _LONGEST_TEXT)])

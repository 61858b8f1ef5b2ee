"""Sets of versions whose kernels run, and train on wrong gradients: known from elsewhere, refused by name.

Inductor's norms since torch 2.10 are not among them: `ops.fused.inductor` switches off what is wrong. No torch here.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from typing import NamedTuple

HOPPER = ("H100", "H200", "H800", "H20", "GH200")


class BadSet(NamedTuple):
    """An operation's fused kernel is wrong on GPUs of these names with a package from version `first` to below `end`,
    unless the module `unless` is installed."""

    operation: str
    package: str
    first: str
    end: str
    gpus: tuple[str, ...]
    what: str
    unless: str = ""


BAD_SETS = (
    BadSet(
        "delta_rule",
        "flash-linear-attention",
        "0",
        "0.6.0",
        HOPPER,
        "the gradient of k is 54 % off on Hopper with flash-linear-attention before 0.6.0",
    ),
    BadSet(
        "gated_delta_rule",
        "triton",
        "3.4",
        "3.7.1",
        HOPPER,
        "Triton 3.4 to 3.7.0 computes a wrong backward on Hopper",
        unless="tilelang",
    ),
)


def known_problems(operations: Sequence[str], facts: Mapping[str, str]) -> dict[str, str]:
    """What is wrong with which of the operations' fused kernels; `facts` are `kernel_cache.cache_facts`."""
    found = {}
    for bad in BAD_SETS:
        version = facts.get(bad.package, "")
        hit = version and _numbers(bad.first) <= _numbers(version) < _numbers(bad.end)
        here = any(name in facts.get("gpu", "") for name in bad.gpus)
        if bad.operation in operations and hit and here and not (bad.unless and _installed(bad.unless)):
            found[bad.operation] = f"{bad.what}; {bad.package} {version} is installed"
    return found


def _numbers(version: str) -> tuple[int, ...]:
    """3.7.0+git1 as (3, 7, 0)."""
    return tuple(int(part) for part in version.partition("+")[0].split(".") if part.isdigit())


def _installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None

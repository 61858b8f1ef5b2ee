"""Operations as functions of single tensors, which is how tests take gradients of their inputs."""

from collections.abc import Callable
from typing import Any


def of_tensors(inputs_type: type[tuple[Any, ...]], op: Callable[..., Any]) -> Callable[..., Any]:
    """`op`, which takes a named tuple of this type, as a function of the tuple's fields and of its own options."""

    def call(*inputs: Any, **options: Any) -> Any:
        fields = {name: options.pop(name) for name in inputs_type._fields if name in options}  # type: ignore[attr-defined]
        return op(inputs_type(*inputs, **fields), **options)

    return call

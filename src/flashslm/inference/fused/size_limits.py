"""Which sizes of heads and states the fused kernels take. No torch here: recipes are checked by it."""

from flashslm.models.architecture import Architecture
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, OPERATOR_SPECS

LARGEST_SIZE = 256  # of a head or a state, one tile of which is in registers


def size_blockers(architecture: Architecture) -> list[str]:
    """Sizes that the kernels cannot take, one line per size; empty: they can. Operators of no export have none."""
    a = architecture
    sized_by = {OPERATOR_SPECS[operator].sized_by for operator in set(a.operators) & set(EXPORTABLE_OPERATORS)}
    heads, mamba = "head_dim" in sized_by, "mamba_state" in sized_by
    sizes = {"head_dim": (a.head_dim, 32, heads), "mamba_state": (a.mamba_state, 16, mamba)}
    sizes["mamba_head_dim"] = (a.mamba_head_dim, 16, mamba)
    return [
        f"{name} is {size}: a power of two from {smallest} to {LARGEST_SIZE}"
        for name, (size, smallest, used) in sizes.items()
        if used and (size.bit_count() > 1 or not smallest <= size <= LARGEST_SIZE)
    ]

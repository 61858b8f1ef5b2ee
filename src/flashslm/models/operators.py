"""Letter to operator class."""

from flashslm.models.architecture import Architecture
from flashslm.models.attention import Attention, WindowAttention
from flashslm.models.deltanet import DeltaNet
from flashslm.models.ffn import FFN
from flashslm.models.gated_deltanet import GatedDeltaNet
from flashslm.models.gla import GLA
from flashslm.models.interface import Operator
from flashslm.models.mamba2 import Mamba2

OPERATOR_CLASSES: dict[str, type[Operator]] = {
    "D": DeltaNet,
    "M": Mamba2,
    "A": Attention,
    "F": FFN,
    "G": GatedDeltaNet,
    "L": GLA,
    "W": WindowAttention,
}


def build_operator(architecture: Architecture, operator: str) -> Operator:
    """Make one operator without its norm; weights are uninitialised."""
    return OPERATOR_CLASSES[operator](architecture)

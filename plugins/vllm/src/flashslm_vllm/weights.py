"""The exported tensors copied into the vLLM model's parameters. No vLLM here."""

from collections.abc import Iterable, Mapping

from torch import Tensor

from flashslm.models.architecture import Architecture
from flashslm_vllm.names import placements


def load(
    parameters: Mapping[str, Tensor], weights: Iterable[tuple[str, Tensor]], architecture: Architecture
) -> set[str]:
    """The names of the parameters that were written, each in whole but for rows that pad the vocabulary.

    Raises ValueError for a tensor that an export of this architecture does not have, and for one that is missing.
    """
    places, loaded = placements(architecture), set()
    for name, tensor in weights:
        if name not in places or places[name].shape != tuple(tensor.shape):
            raise ValueError(f"tensor {name} {tuple(tensor.shape)}: an export of this config.json has no such tensor")
        place = places.pop(name)
        rows = parameters[place.parameter].data[place.first_row : place.first_row + len(tensor)]
        value = -tensor.float().exp() if name.endswith("mamba.A_log") else tensor
        rows.copy_(value.reshape(rows.shape))
        loaded.add(place.parameter)
    if places:
        raise ValueError(f"the export lacks {', '.join(places)}: check it with flashslm verify-export")
    return loaded

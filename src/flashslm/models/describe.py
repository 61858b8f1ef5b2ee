"""What an architecture is and what a decoded token of it costs, in one object. No torch is imported here."""

from collections.abc import Sequence
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict

from flashslm.hardware import PEAKS, device_fingerprint, peak, pick_device
from flashslm.models.accounting import (
    decode_bytes_per_token,
    forward_flops_per_token,
    kv_bytes_per_sequence,
    kv_bytes_per_token,
    parameters,
    state_bytes,
)
from flashslm.models.architecture import Architecture


class Device(NamedTuple):
    name: str
    bytes_per_s: float | None  # data-sheet memory bandwidth; None: no number is known


class Description(BaseModel):
    """Costs are of a decode step in bfloat16 with fp32 recurrent states.

    `context` is the tokens attended to, meta tokens included; `decode_bytes_per_token` and the floor, which is the time
    to move them, are of a step that gives each of `batch` sequences a token.
    """

    model_config = ConfigDict(frozen=True)

    operators: str
    notation: str  # the operators with repeats folded
    sizes: dict[str, int | float | str | bool]
    parameters: dict[str, int]
    context: int
    batch: int
    flops_per_token: float
    decode_bytes_per_token: float
    kv_bytes_per_token: int
    kv_bytes_per_sequence: int
    state_bytes_per_sequence: int
    device: str
    floor_ms_per_token: float | None
    exportable: bool
    export_blockers: list[str]
    assumptions: tuple[str, ...] = ()  # what the source leaves open, or the model has not


def describe(
    architecture: Architecture, context: int, batch: int, device: Device, export_blockers: Sequence[str]
) -> Description:
    a = architecture
    moved_bytes = decode_bytes_per_token(a, context, batch)
    return Description(
        operators=a.operators,
        notation=fold_operators(a.operators),
        sizes=a.model_dump(exclude={"operators"}),
        parameters=parameters(a),
        context=context,
        batch=batch,
        flops_per_token=forward_flops_per_token(a, context),
        decode_bytes_per_token=moved_bytes,
        kv_bytes_per_token=kv_bytes_per_token(a),
        kv_bytes_per_sequence=kv_bytes_per_sequence(a, context),
        state_bytes_per_sequence=state_bytes(a),
        device=device.name,
        floor_ms_per_token=1e3 * moved_bytes / device.bytes_per_s if device.bytes_per_s else None,
        exportable=not export_blockers,
        export_blockers=list(export_blockers),
        assumptions=_beyond_positions(context, a.max_position_embeddings),
    )


def _beyond_positions(context: int, positions: int) -> tuple[str, ...]:
    return (f"a context of {context:,}, though the model has {positions:,} positions",) if context > positions else ()


def find_device(name: str = "") -> Device:
    """The GPU of this name ("NVIDIA" and case do not matter) or, without one, the present device.

    Raises ValueError, naming the known ones, for a name without data-sheet values.
    """
    if not name:
        present = device_fingerprint(pick_device("auto")).name
        known = peak(present)
        return Device(present, known.bytes_per_s if known else None)
    for gpu, values in PEAKS.items():
        if name.lower().removeprefix("nvidia ") == gpu.lower().removeprefix("nvidia "):
            return Device(gpu, values.bytes_per_s)
    raise ValueError(f"device '{name}' has no known memory bandwidth: choose one of {', '.join(PEAKS)}")


def fold_operators(operators: str) -> str:
    """Write repeats as such, `DFMFDFMFA` as `(DFMF)x2 A`, where that is no longer; `parse_operators` reads it back."""
    words: list[str] = []
    plain, start = "", 0
    while start < len(operators):
        unit, times = _longest_repeat(operators[start:])
        folded = f"({unit})x{times}"
        if len(folded) <= len(unit) * times:
            words += [plain, folded]
            plain, start = "", start + len(unit) * times
        else:
            plain, start = plain + operators[start], start + 1
    return " ".join(word for word in (*words, plain) if word)


def _longest_repeat(text: str) -> tuple[str, int]:
    """The unit at the head of `text` whose repeats cover most of it, the shortest of these, and how many they are."""
    best = (text[:1], 1)
    for size in range(1, len(text) // 2 + 1):
        unit, times = text[:size], 1
        while text.startswith(unit, times * size):
            times += 1
        if times > 1 and times * size > len(best[0]) * best[1]:
            best = (unit, times)
    return best

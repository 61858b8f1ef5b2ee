"""The same decoding in another library, on the same device: transformers, or vLLM's engine."""

import importlib.metadata
import importlib.util
import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from typing import NamedTuple, Protocol

import torch
from pydantic import ConfigDict

from flashslm.benchmarking import clock, memory
from flashslm.benchmarking.case import Case, prompts
from flashslm.benchmarking.clock import Decoder, DecodeTimes
from flashslm.benchmarking.qwen3_shape import is_qwen3, qwen3_presets
from flashslm.benchmarking.transformers_peer import TransformersDecoder
from flashslm.benchmarking.vllm_peer import PLUGIN, PluginDecoder, VllmDecoder
from flashslm.export.hf_config import export_problems
from flashslm.models.presets import preset

DEFAULT_PRESET = "qwen3-0.6b"  # what the paper's hybrids of about 1B are compared with


class PeerDecoder(Decoder, Protocol):
    """What a library's decoder has besides; `engine` names it with its version and settings."""

    engine: str


OWN_MODEL = "vllm-plugin"  # the peer that runs the same model as ours
DECODERS: dict[str, Callable[[Case], PeerDecoder]] = {
    "hf": TransformersDecoder,
    "vllm": VllmDecoder,
    OWN_MODEL: PluginDecoder,
}


class Peer(NamedTuple):
    """What is measured beside ours: a name of DECODERS and the case."""

    name: str
    case: Case


class PeerResult(DecodeTimes):
    """Times of `preset`'s shape in the library that `engine` names."""

    model_config = ConfigDict(frozen=True)

    preset: str
    engine: str
    tokens_per_s: float


def find_peer(spec: str, case: Case) -> Peer:
    """The peer that `spec` puts beside `case`: `hf` or `vllm`, or `hf:PRESET` for another shape of the same sizes.

    Without a preset it is the same shape where the library's Qwen3 has it, else qwen3-0.6b. `vllm-plugin` is our own
    model in vLLM. ValueError says what is allowed, or what is missing here.
    """
    library, _, name = spec.partition(":")
    if library not in DECODERS or (name and name not in qwen3_presets()):
        raise ValueError(
            f"peer '{spec}' is unknown: give hf, vllm or {OWN_MODEL}, the first two also with :PRESET, "
            f"which is {' or '.join(qwen3_presets())}"
        )
    if library in ("vllm", OWN_MODEL):
        _require_vllm(library, case)
    if library == OWN_MODEL:
        _require_plugin(name, case)
        return Peer(library, case)
    if not name and is_qwen3(case.architecture):
        return Peer(library, case)
    name = name or DEFAULT_PRESET
    return Peer(library, replace(case, preset=name, architecture=preset(name)))


def _require_vllm(library: str, case: Case) -> None:
    if case.device != "cuda":
        raise ValueError(f"peer '{library}' needs a GPU, and this run is on the CPU: use --peer hf")
    if importlib.util.find_spec("vllm") is None:
        raise ValueError(
            f"peer '{library}' needs the package vllm, which is not installed: pip install a version that takes "
            f"torch {torch.__version__.partition('+')[0]}, or use --peer hf"
        )


def _require_plugin(preset_name: str, case: Case) -> None:
    if preset_name:
        raise ValueError(f"peer '{OWN_MODEL}:{preset_name}': it is the same model as ours, leave out :{preset_name}")
    if PLUGIN not in importlib.metadata.entry_points(group="vllm.general_plugins").names:
        raise ValueError(f"peer '{OWN_MODEL}' needs the plug-in, which is not installed: pip install plugins/vllm")
    if problems := export_problems(case.architecture):
        raise ValueError(f"peer '{OWN_MODEL}' runs what can be exported: {'; '.join(problems)}")


def measure_peer(peer: Peer) -> PeerResult:
    """Time it as ours is timed; compiling is part of the warm-up."""
    (found,) = measure_peers([peer])
    return found


def share_a_decoder(peers: Sequence[Peer]) -> list[list[Peer]]:
    """The peers in groups for `measure_peers`: a vLLM engine takes any sizes, transformers is compiled for each."""
    groups: dict[tuple[object, ...], list[Peer]] = {}
    for peer in peers:
        sizes = (peer.case.context, peer.case.batch) if peer.name == "hf" else ()
        groups.setdefault((peer.name, peer.case.preset, *sizes), []).append(peer)
    return list(groups.values())


def measure_peers(peers: Sequence[Peer]) -> Iterator[PeerResult]:
    """Time a group of `share_a_decoder`, all by one decoder with the largest of their sizes."""
    device = peers[0].case.device
    try:
        yield from _measure(peers)
    finally:
        if device == "cuda":
            torch._dynamo.reset()  # its graphs hold memory, and a second shape would be compiled as a dynamic one
        memory.release(device)


def measure_apart(peers: Sequence[Peer]) -> tuple[list[PeerResult], Exception | None]:
    """What `measure_peers` gives up to an error, and that error, from a process of its own.

    Not all memory of a vLLM engine comes back before its process ends.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_until_error, peers).result()


def _until_error(peers: Sequence[Peer]) -> tuple[list[PeerResult], Exception | None]:
    found: list[PeerResult] = []
    try:
        found.extend(measure_peers(peers))
    except Exception as error:
        traceback.print_exc()
        return found, RuntimeError(f"{type(error).__name__}: {error}")  # the error's own class may not be picklable
    return found, None


def _measure(peers: Sequence[Peer]) -> Iterator[PeerResult]:
    largest = {name: max(getattr(p.case, name) for p in peers) for name in ("context", "new_tokens", "batch")}
    decoder = DECODERS[peers[0].name](replace(peers[0].case, **largest))
    for _, case in peers:
        times = clock.time_decoder(decoder, prompts(case), case.new_tokens, case.repeats, case.device)
        tokens_per_s = 1e3 * case.batch / times.tpot_ms_mean
        yield PeerResult(**times.model_dump(), preset=case.preset, engine=decoder.engine, tokens_per_s=tokens_per_s)

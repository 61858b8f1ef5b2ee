"""Latency of decoding: TTFT, TPOT, MBU, the share of each operator, and the same work in transformers beside it."""

from flashslm.benchmarking import clock, peer
from flashslm.benchmarking.case import Case, prompts
from flashslm.benchmarking.clock import DecodeTimes
from flashslm.benchmarking.peer import PeerResult
from flashslm.benchmarking.result import BenchmarkResult, BenchmarkRun, measured
from flashslm.config import KernelsConfig
from flashslm.inference.engine import DecodeEngine
from flashslm.models.random_weights import random_model


class ComparedPeer(PeerResult):
    """`ratio` is the peer's median TPOT over ours: above 1 ours is faster."""

    ratio: float


class DecodeResult(DecodeTimes, BenchmarkResult):
    """The last line of `flashslm bench decode`."""

    peer: ComparedPeer | None = None


def bench_decode(case: Case, setting: KernelsConfig, peer_spec: str = "") -> DecodeResult:
    """Measure with random weights; a peer (see `peer.find_peer`) is measured once ours has been freed."""
    against = peer.find_peer(peer_spec, case) if peer_spec else None
    result = measure_decode(case, setting)
    return compare(result, peer.measure_peer(against)) if against else result


def measure_decode(case: Case, setting: KernelsConfig) -> DecodeResult:
    """Ours alone."""
    _, fields = measured(case, setting, _run)
    return DecodeResult(**fields)


def compare(result: DecodeResult, found: PeerResult) -> DecodeResult:
    """The result with its peer."""
    ratio = found.tpot_ms_median / result.tpot_ms_median
    return result.model_copy(update={"peer": ComparedPeer(**found.model_dump(), ratio=ratio)})


def _run(case: Case) -> BenchmarkRun[DecodeTimes]:
    model = random_model(case.architecture, case.device, case.torch_dtype)
    engine = DecodeEngine(model, case.batch, case.capacity)
    times = clock.time_decoder(engine, prompts(case), case.new_tokens, case.repeats, case.device)
    return BenchmarkRun(case, engine.backend, times)

"""Latency of decoding: TTFT, TPOT, MBU, the share of each operator, and the same work in another library beside it."""

from flashslm.benchmarking import clock, peer
from flashslm.benchmarking.case import Case, prompts
from flashslm.benchmarking.clock import DecodeTimes
from flashslm.benchmarking.peer import PeerResult
from flashslm.benchmarking.result import BenchmarkResult, BenchmarkRun, measured
from flashslm.config import KernelsConfig
from flashslm.hardware import peak
from flashslm.inference.engine import DecodeEngine
from flashslm.models.random_weights import random_model


class ComparedPeer(PeerResult):
    """`ratio` is the peer's median TPOT over ours, `ttft_ratio` its TTFT over ours: above 1 ours is faster."""

    ratio: float
    ttft_ratio: float


class DecodeResult(DecodeTimes, BenchmarkResult):
    """The last line of `flashslm bench decode`.

    `ttft_floor_ms` is the time that `prefill_flops` take at the data sheet's peak; None for an unknown device.
    """

    prefill_flops: float
    ttft_floor_ms: float | None
    peer: ComparedPeer | None = None


def bench_decode(case: Case, setting: KernelsConfig, peer_spec: str = "") -> DecodeResult:
    """Measure with random weights; a peer (see `peer.find_peer`) is measured once ours has been freed."""
    against = peer.find_peer(peer_spec, case) if peer_spec else None
    result = measure_decode(case, setting)
    return compare(result, peer.measure_peer(against)) if against else result


def measure_decode(case: Case, setting: KernelsConfig) -> DecodeResult:
    """Ours alone."""
    _, fields = measured(case, setting, _run)
    flops, known = case.prefill_flops, peak(fields["fingerprint"].gpu)
    return DecodeResult(**fields, prefill_flops=flops, ttft_floor_ms=1e3 * flops / known.flops_per_s if known else None)


def compare(result: DecodeResult, found: PeerResult) -> DecodeResult:
    """The result with its peer."""
    ratio, ttft_ratio = found.tpot_ms_median / result.tpot_ms_median, found.ttft_ms / result.ttft_ms
    compared = ComparedPeer(**found.model_dump(), ratio=ratio, ttft_ratio=ttft_ratio)
    return result.model_copy(update={"peer": compared})


def _run(case: Case) -> BenchmarkRun[DecodeTimes]:
    model = random_model(case.architecture, case.device, case.torch_dtype)
    engine = DecodeEngine(model, case.batch, case.capacity, weights=case.weights)
    times = clock.time_decoder(engine, prompts(case), case.new_tokens, case.repeats, case.device)
    return BenchmarkRun(case, engine.backend, times)

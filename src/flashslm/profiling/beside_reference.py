"""A model's decode latency as a measurement: in rounds beside a fixed reference model, so that a busy machine is seen.

The reference is the same on every run and for every recipe. Its own times say how steady the device was, and a model's
time over the reference's can be compared with that of another day.
"""

import math
import random
from collections.abc import Sequence
from statistics import median

import numpy as np
from pydantic import BaseModel, ConfigDict

from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.hardware import DeviceKind
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.profiling.energy import joules_per_token
from flashslm.profiling.measure import ModelPoint, build_model_step, pick_profiling_device
from flashslm.profiling.timing import TimedCall, cpu_threads, samples_ms
from flashslm.statistics import t_difference

ROUNDS = 10
REFERENCE_OPERATORS, REFERENCE_CONTEXT, REFERENCE_VOCABULARY = "DFMFAF", 64, 1024
REFERENCE_WIDTHS: dict[DeviceKind, int] = {"cpu": 128, "cuda": 1024}
REFERENCE_SIZES = ModelConfig(head_dim=32, mamba_state=16, mamba_head_dim=16, num_meta_tokens=0)


class SteadyLatency(BaseModel):
    """Milliseconds of a decode step; intervals are Student's t at 95 % over the rounds, of logarithms.

    `over_reference` is the geometric mean of a round's time over the reference's in the same round. `drift` is the
    reference's slowest round over its fastest, less 1: what the machine did meanwhile.
    """

    model_config = ConfigDict(frozen=True)

    median_ms: float
    p10_ms: float
    p90_ms: float
    low_ms: float
    high_ms: float
    reference_ms: float
    over_reference: float
    over_reference_low: float
    over_reference_high: float
    drift: float
    rounds: int
    joules_per_token: float | None = None  # of the whole GPU; None on a CPU

    def facts(self) -> dict[str, float]:
        """Under the names that an export's manifest has."""
        own = {f"latency_{name}": getattr(self, name) for name in ("p10_ms", "p90_ms", "low_ms", "high_ms")}
        beside = ("over_reference", "over_reference_low", "over_reference_high", "drift")
        found = {f"latency_{name}": getattr(self, name) for name in beside}
        energy = {} if self.joules_per_token is None else {"joules_per_token": self.joules_per_token}
        return {"latency_ms": self.median_ms, "reference_latency_ms": self.reference_ms} | own | found | energy


def measure_beside_reference(point: ModelPoint, config: ProfilingConfig) -> SteadyLatency:
    """Time the engine's whole decode step, with random weights, in rounds of model and reference in random order.

    The reference's weights have no other format, whatever the model's have.
    """
    device = pick_profiling_device(config)
    reference = ModelPoint(reference_architecture(device), REFERENCE_CONTEXT, 1)
    with cpu_threads(config.threads):
        fixed = config.model_copy(update={"weights": "full"})
        steps = build_model_step(point, config), build_model_step(reference, fixed)
        own, other = time_rounds(steps, config.warmup, config.repeats, device)
        energy = joules_per_token(steps[0], point.batch, device)
    return summarise(own, other).model_copy(update={"joules_per_token": energy})


def reference_architecture(device: DeviceKind) -> Architecture:
    """Of each operator of the search one; wide enough to load the device's memory rather than its launches."""
    return build_architecture(REFERENCE_OPERATORS, REFERENCE_WIDTHS[device], REFERENCE_SIZES, REFERENCE_VOCABULARY)


def time_rounds(steps: Sequence[TimedCall], warmup: int, repeats: int, device: DeviceKind) -> list[list[list[float]]]:
    """Samples in ms of each step, by round: every round has all steps, in an order of its own."""
    rng, order = random.Random(0), list(range(len(steps)))
    found: list[list[list[float]]] = [[] for _ in steps]
    for _ in range(ROUNDS):
        rng.shuffle(order)
        for index in order:
            found[index].append(samples_ms(steps[index], warmup, max(2, math.ceil(repeats / ROUNDS)), device))
    return found


def summarise(own: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> SteadyLatency:
    """Of the samples of each round."""
    times, others = ([median(samples) for samples in rounds] for rounds in (own, reference))
    p10, middle, p90 = np.percentile([sample for samples in own for sample in samples], [10, 50, 90])
    absolute = t_difference([math.log(t) for t in times])
    relative = t_difference([math.log(t / o) for t, o in zip(times, others, strict=True)])
    return SteadyLatency(
        median_ms=float(middle),
        p10_ms=float(p10),
        p90_ms=float(p90),
        low_ms=math.exp(absolute.low),
        high_ms=math.exp(absolute.high),
        reference_ms=median(others),
        over_reference=math.exp(relative.value),
        over_reference_low=math.exp(relative.low),
        over_reference_high=math.exp(relative.high),
        drift=max(others) / min(others) - 1,
        rounds=len(times),
    )

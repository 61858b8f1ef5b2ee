"""How fast a model trains: steps of the trainer itself, with weight normalisation and without, beside a peer."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from flashslm.benchmarking import memory
from flashslm.benchmarking.checkpoint_cost import CheckpointCost, measure_checkpoint
from flashslm.benchmarking.record import Provenance, provenance
from flashslm.benchmarking.training_graph import GraphComparison, compare_graph, require_recordable
from flashslm.benchmarking.training_peer import Library, build_peer, require_peer
from flashslm.benchmarking.training_steps import (
    StepSpeed,
    Trained,
    TrainingCase,
    peak_flops_per_s,
    random_batch,
    step_times,
)
from flashslm.config import KernelsConfig, TrainingConfig
from flashslm.models.accounting import parameters
from flashslm.models.hybrid import HybridLM
from flashslm.ops import kernels
from flashslm.training.distributed import add_up_gradients, current_world, shard_model, sum_over_ranks
from flashslm.training.runtime import gc_held, reproducible
from flashslm.training.step import TrainStep

WARM_UP_STEPS = 3
COMPARED_STEPS = 3


class TrainingPeerResult(StepSpeed):
    """The same shape in the library that `engine` names.

    `ratio` is our tokens/s over its, without weight normalisation; `graph_ratio` is that of whole recorded steps, with
    it.
    """

    engine: str
    peak_memory_bytes: int
    ratio: float
    graph_ratio: float | None = None


class TrainingResult(Provenance):
    """The last line of `flashslm bench training`. `weight_norm_share` is its part of a step, by the device's clock.

    Speeds are those of one of the `processes`. `first_losses_nats` are the means over all processes and micro-batches
    of the first steps, with weight normalisation: N processes have those of one with N micro-batches.
    """

    preset: str
    operators: str
    parameters: int
    precision: str
    kernels: dict[str, str]
    deterministic: bool
    sequence_length: int
    batch: int
    steps: int
    flops_per_token: float
    peak_flops_per_s: float | None
    processes: int
    shard_processes: int
    gather_dtype: str
    first_step_s: float
    first_losses_nats: list[float]
    weight_norm_off: StepSpeed
    weight_norm_on: StepSpeed
    weight_norm_share: float
    peak_memory_bytes: int
    checkpoint: CheckpointCost | None = None
    graph: GraphComparison | None = None
    peer: TrainingPeerResult | None = None


def bench_training(
    case: TrainingCase,
    setting: KernelsConfig,
    peer: Library | None = None,
    *,
    checkpoint: bool = False,
    graph: bool = False,
) -> TrainingResult:
    """Time at least `case.steps` steps of each variant after a warm-up, then the peer. Frees what it used.

    Under torchrun every process calls it; groups of `case.shard_processes` share a copy of the model. With `checkpoint`
    one is written meanwhile, with `graph` whole steps are also timed as a CUDA graph.
    """
    if peer and current_world().size > 1:
        raise ValueError("a peer trains in one process: leave out --peer, or torchrun")
    if case.shard_processes and current_world().size % case.shard_processes:
        raise ValueError(
            f"--shard-processes is {case.shard_processes} and {current_world().size} processes train: give a divisor "
            f"of {current_world().size}, 1 for a copy in each of them, or leave it out"
        )
    if peer:
        require_peer(case, peer)
    kernels.configure(setting)
    memory.release(case.device)
    memory.reset_peak(case.device)
    with _settings(case):
        first_step_s, losses, off, on, cost, compared = _measure_ours(case, checkpoint, graph)
    peak_bytes, decisions = memory.peak_bytes(case.device), kernels.decisions()
    memory.release(case.device)
    known = peak_flops_per_s(case)
    return TrainingResult(
        **provenance(case.device),
        preset=case.preset,
        operators=case.architecture.operators,
        parameters=parameters(case.architecture)["total"],
        precision=case.precision,
        kernels=decisions,
        deterministic=case.deterministic,
        sequence_length=case.sequence_length,
        batch=case.batch,
        steps=case.steps,
        flops_per_token=case.flops_per_token,
        peak_flops_per_s=known,
        processes=current_world().size,
        shard_processes=case.shard_processes,
        gather_dtype=case.gather_dtype,
        first_step_s=first_step_s,
        first_losses_nats=losses,
        weight_norm_off=off,
        weight_norm_on=on,
        weight_norm_share=on.parts_ms["weight_norm"] / on.step_ms_median,
        peak_memory_bytes=peak_bytes,
        checkpoint=cost,
        graph=compared,
        peer=_measure_peer(case, peer, off, compared) if peer else None,
    )


def _measure_ours(
    case: TrainingCase, checkpoint: bool, graph: bool
) -> tuple[float, list[float], StepSpeed, StepSpeed, CheckpointCost | None, GraphComparison | None]:
    model = HybridLM.build(case.architecture, device=case.device, init_on_device=True)
    shard_model(model, case.shard_processes, getattr(torch, case.gather_dtype))
    config = TrainingConfig(batch_size=case.batch, sequence_length=case.sequence_length)
    step = TrainStep(model, config, case.precision, weight_norm=True)
    if graph:
        require_recordable(step)
    step.begin(config.warmup_steps)
    trained = Trained(step.loss, step.update, step.project)
    started, losses = time.perf_counter(), [_step_loss(case, step, 0)]
    first_step_s = time.perf_counter() - started
    losses += [_step_loss(case, step, index) for index in range(1, COMPARED_STEPS)]
    add_up_gradients(model, now=True)
    speeds = []
    for step.weight_norm in (False, True):
        step_times(case, trained, WARM_UP_STEPS)
        speeds.append(step_times(case, trained, case.steps))
    cost = measure_checkpoint(step, lambda: _step_loss(case, step, 0), case.steps) if checkpoint else None
    compared = compare_graph(case, step) if graph else None
    return first_step_s, losses, speeds[0], speeds[1], cost, compared


def _step_loss(case: TrainingCase, step: TrainStep, index: int) -> float:
    """Run a step of several micro-batches; nats of its loss, the mean over all processes."""
    world, count = current_world(), case.micro_batches
    numbers = [(index * count + micro_batch) * world.size + world.rank for micro_batch in range(count)]
    result = step.whole((random_batch(case, number) for number in numbers), count)
    return sum_over_ranks(result.loss / world.size).item()


def _measure_peer(
    case: TrainingCase, library: Library, ours: StepSpeed, compared: GraphComparison | None
) -> TrainingPeerResult:
    memory.reset_peak(case.device)
    with _settings(case):
        engine, trained = build_peer(case, library)
        step_times(case, trained, WARM_UP_STEPS)
        speed = step_times(case, trained, case.steps)
    result = TrainingPeerResult(
        **speed.model_dump(),
        engine=engine,
        peak_memory_bytes=memory.peak_bytes(case.device),
        ratio=ours.tokens_per_s / speed.tokens_per_s,
        graph_ratio=compared.graph.tokens_per_s / speed.tokens_per_s if compared else None,
    )
    del trained
    memory.release(case.device)
    return result


@contextmanager
def _settings(case: TrainingCase) -> Iterator[None]:
    with reproducible(0, torch.get_num_threads(), deterministic=case.deterministic), gc_held():
        yield

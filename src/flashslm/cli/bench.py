"""`flashslm bench`: decoding, throughput and training of a model with random weights, on this machine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from flashslm.cli.describe import readable
from flashslm.cli.options import KernelsOption, OutputOption
from flashslm.cli.output import AS_IT_IS, console, print_whole

if TYPE_CHECKING:
    from flashslm.benchmarking.case import Case
    from flashslm.benchmarking.decode import ComparedPeer, DecodeResult
    from flashslm.benchmarking.throughput import ThroughputResult
    from flashslm.benchmarking.training import TrainingResult
    from flashslm.benchmarking.training_graph import WholeStep
    from flashslm.benchmarking.training_steps import StepSpeed, TrainingCase
    from flashslm.models.architecture import Architecture

bench_app = typer.Typer(no_args_is_help=True, help="Speed of a model with random weights on this machine.")

PresetOption = Annotated[str, typer.Option(help="A preset such as nemotron-flash-1b.")]
ModelOption = Annotated[str, typer.Option(help="Instead of a preset: an architecture.json, or a directory with one.")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option()]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="auto: bfloat16 on CUDA, float32 on a CPU.")
]
RepeatsOption = Annotated[int, typer.Option(help="Runs of all steps.")]
WeightsOption = Annotated[
    Literal["full", "int8"],
    typer.Option(help="int8: matrices rounded to 8 bits with a scale per row, read as such by fused steps."),
]

LARGEST = "largest"


@bench_app.command()
def decode(  # noqa: PLR0913 - one parameter an option
    preset: PresetOption = "",
    model: ModelOption = "",
    context: Annotated[int, typer.Option(help="Text tokens of a prompt.")] = 1024,
    new_tokens: Annotated[int, typer.Option(help="Decode steps after the first token.")] = 256,
    batch: Annotated[int, typer.Option(help="Sequences decoded together.")] = 1,
    peer: Annotated[
        str,
        typer.Option(
            help="hf or vllm: the same shape in transformers or in vLLM's offline engine, qwen3-0.6b where that has "
            "none; hf:PRESET, vllm:PRESET; vllm-plugin: the same model in vLLM."
        ),
    ] = "",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    kernels: KernelsOption = None,
    weights: WeightsOption = "full",
    repeats: RepeatsOption = 3,
    output: OutputOption = None,
) -> None:
    """Time to first token, time per token, memory bandwidth use, each operator's share; the last line is JSON."""
    from flashslm.benchmarking.decode import bench_decode
    from flashslm.ops.kernels import read_setting

    case = replace(make_case(preset, model, context, new_tokens, batch, (device, dtype), repeats), weights=weights)
    warn_of_minutes(case)
    result = bench_decode(case, read_setting(kernels), peer)
    show_decode(result)
    finish(result, output)


@bench_app.command()
def throughput(  # noqa: PLR0913 - one parameter an option
    preset: PresetOption = "",
    model: ModelOption = "",
    context: Annotated[int, typer.Option(help="Text tokens a sequence has after the last step.")] = 32_768,
    new_tokens: Annotated[int, typer.Option(help="Decode steps.")] = 64,
    batch: Annotated[str, typer.Option(help="Sequences decoded together, or 'largest': all that fit.")] = LARGEST,
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    kernels: KernelsOption = None,
    repeats: RepeatsOption = 3,
    output: OutputOption = None,
) -> None:
    """Tokens per second of many sequences at a long context, on caches of random values; the last line is JSON."""
    from flashslm.benchmarking.throughput import bench_throughput, steps_ending_at
    from flashslm.ops.kernels import read_setting

    if batch != LARGEST and not batch.lstrip("-").isdigit():
        raise ValueError(f"batch is '{batch}': give a number of sequences or '{LARGEST}'")
    sequences = 1 if batch == LARGEST else int(batch)
    start = steps_ending_at(context, new_tokens)
    case = make_case(preset, model, start, new_tokens, sequences, (device, dtype), repeats)
    warn_of_minutes(case)
    result = bench_throughput(case, read_setting(kernels), largest=batch == LARGEST)
    show_throughput(result)
    finish(result, output)


@bench_app.command()
def training(  # noqa: PLR0913 - one parameter an option
    preset: PresetOption = "",
    model: ModelOption = "",
    sequence_length: Annotated[int, typer.Option(help="Tokens of a sequence.")] = 4096,
    width: Annotated[int, typer.Option(min=0, help="Another hidden size for the preset's operators; 0: its own.")] = 0,
    batch: Annotated[int, typer.Option(help="Sequences of a step, in one micro-batch of each process.")] = 8,
    steps: Annotated[int, typer.Option(help="Steps that are timed, of each variant.")] = 30,
    micro_batches: Annotated[int, typer.Option(help="Micro-batches of each of the first steps (their losses).")] = 1,
    gather_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="Of the weights that several processes send each other.")
    ] = "float32",
    shard_processes: Annotated[
        int, typer.Option(min=0, help="Processes that hold one copy of the model together; 0: all, 1: each its own.")
    ] = 0,
    checkpoint: Annotated[bool, typer.Option(help="Also time steps while a checkpoint is written.")] = False,
    graph: Annotated[
        bool, typer.Option(help="Also time whole steps, plainly and as one CUDA graph, and the GPU's busy share.")
    ] = False,
    peer: Annotated[
        Literal["", "transformers", "fla"], typer.Option(help="The library that trains the same shape beside ours.")
    ] = "",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    deterministic: Annotated[bool, typer.Option(help="Use deterministic algorithms.")] = False,
    kernels: KernelsOption = None,
    output: OutputOption = None,
) -> None:
    """Tokens per second, parts of a step and MFU, without and with weight normalisation; the last line is JSON.

    Under torchrun the processes share the model, and the first one speaks.
    """
    from flashslm.benchmarking.training import bench_training
    from flashslm.benchmarking.training_steps import TrainingCase
    from flashslm.hardware import pick_device, pick_dtype
    from flashslm.models.presets import at_width
    from flashslm.ops.kernels import read_setting
    from flashslm.training.distributed import world_from_environment

    kind = pick_device(device)
    name, architecture = find_architecture(preset, model)
    architecture = at_width(architecture, width) if width else architecture
    precision = pick_dtype(dtype, kind)
    sizes = (sequence_length, batch, steps)
    together = (micro_batches, gather_dtype, shard_processes)
    case = TrainingCase(name, architecture, *sizes, kind, precision, deterministic, *together)
    with world_from_environment() as world:
        if world.is_main:
            warn_of_minutes(case)
            warn_of_no_effect(case, world.size)
        result = bench_training(case, read_setting(kernels), peer or None, checkpoint=checkpoint, graph=graph)
        if world.is_main:
            show_training(result)
            finish(result, output)


def warn_of_minutes(case: "Case | TrainingCase") -> None:
    """Say on stderr that a benchmark will take minutes, before it begins."""
    from flashslm.benchmarking.estimate import warning

    if text := warning(case):
        console.print(text, **AS_IT_IS)


def warn_of_no_effect(case: "TrainingCase", processes: int) -> None:
    """A warning on stderr for each option that does nothing with so many processes."""
    from flashslm.config import TrainingConfig
    from flashslm.config.no_effect import without_effect_here

    given = TrainingConfig(shard_processes=case.shard_processes, gather_dtype=case.gather_dtype)
    for name, why in without_effect_here(given, processes, case.device, case.precision).items():
        console.print("[bold yellow]warning:[/]", end=" ")
        console.print(f"--{name.replace('_', '-')}: no effect: {why}", **AS_IT_IS)


def find_architecture(preset: str, model: str) -> "tuple[str, Architecture]":
    """Name and architecture that one of the two options gives."""
    from flashslm.cli.describe import read_architecture
    from flashslm.models.presets import preset as find_preset

    if bool(preset) == bool(model):
        raise ValueError("give one of --preset, such as --preset nemotron-flash-1b, and --model")
    return preset or model, find_preset(preset) if preset else read_architecture(model)


def make_case(
    preset: str, model: str, context: int, new_tokens: int, batch: int, where: tuple[Any, Any], repeats: int
) -> "Case":
    """The case these options describe; `where` is device and dtype. ValueError says what is wrong with them."""
    from flashslm.benchmarking.case import Case
    from flashslm.hardware import pick_device, pick_dtype

    name, architecture = find_architecture(preset, model)
    device = pick_device(where[0])
    dtype = pick_dtype(where[1], device)
    return Case(name, architecture, context, new_tokens, batch, device, dtype, repeats)


def finish(result: "DecodeResult | ThroughputResult | TrainingResult", output: Path | None) -> None:
    """The JSON object, in the file too if there is one to write: printed first, so that no error of a disk loses it."""
    text = result.model_dump_json()
    print(text, flush=True)
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")


def show_decode(result: "DecodeResult") -> None:
    known = result.ttft_floor_ms is not None
    floor = f", at the data sheet's peak {result.ttft_floor_ms:.2f}" if known else ""
    lines = {
        "TTFT": f"{result.ttft_ms:.2f} ms{floor}",
        "TPOT": f"{result.tpot_ms_median:.4f} ms median, {result.tpot_ms_p90:.4f} p90, {result.tpot_ms_mean:.4f} mean",
    }
    show_result(result, lines)
    if result.peer:
        show_peer(result.peer)


def show_throughput(result: "ThroughputResult") -> None:
    what = "the largest that fits" if result.largest else "as given"
    lines = {
        "batch": f"{result.batch}, {what}: caches of {readable(result.cache_bytes, 'B')}",
        "step": f"{result.tpot_ms_median:.4f} ms median, {result.tpot_ms_p90:.4f} p90, {result.tpot_ms_mean:.4f} mean",
    }
    show_result(result, lines)


def show_result(result: "DecodeResult | ThroughputResult", times: dict[str, str]) -> None:
    """What ran, its times, the memory's part, the operators."""
    copied = readable(result.bandwidth_measured_bytes_per_s, "B/s")
    measured = f"{result.mbu_measured:.1%} of {copied} (a copy on this machine)"
    if result.mbu is not None and result.bandwidth_bytes_per_s is not None:
        measured = f"{result.mbu:.1%} of {readable(result.bandwidth_bytes_per_s, 'B/s')} (data sheet), {measured}"
    lines = {
        "model": f"{result.preset}, {result.parameters:,} parameters, {result.dtype}",
        "engine": f"{result.engine} on {result.device}",
        "sizes": f"batch {result.batch}, context {result.context}, {result.new_tokens} new tokens, "
        f"{result.repeats} repeats",
        **times,
        "tokens/s": f"{result.tokens_per_s:,.1f}",
        "a step moves": readable(result.bytes_per_token, "B"),
        "MBU": measured,
        "peak memory": readable(result.peak_memory_bytes, "B"),
    }
    out = Console()
    for name, text in lines.items():
        out.print(f"{name:<12}  {text}", **AS_IT_IS)
    table = Table(box=None, pad_edge=False)
    for column in ("operator", "ms per step", "share"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for name, share in result.operator_share.items():
        table.add_row(name, f"{share * result.tpot_ms_median:.4f}", f"{share:.1%}")
    print_whole(table)


def show_peer(peer: "ComparedPeer") -> None:
    text = f"{peer.preset} in {peer.engine}: TPOT {peer.tpot_ms_median:.4f} ms, {peer.ratio:.2f} times ours"
    text += f"; TTFT {peer.ttft_ms:.2f} ms, {peer.ttft_ratio:.2f} times ours"
    Console().print(f"{'peer':<12}  {text}", **AS_IT_IS)


def show_training(result: "TrainingResult") -> None:
    """What ran, each variant's speed and its parts, the peer."""
    out = Console()
    lines = {
        "model": f"{result.preset}, {result.parameters:,} parameters, {result.precision}, on {result.device}",
        "sizes": f"{result.batch} sequences of {result.sequence_length} tokens, {result.steps} steps",
        "first step": f"{result.first_step_s:.1f} s",
        "peak memory": readable(result.peak_memory_bytes, "B"),
        "weight norm": f"{result.weight_norm_share:.2%} of a step",
    }
    if result.processes > 1:
        lines["processes"] = f"{result.processes}; speeds are those of one"
    if cost := result.checkpoint:
        written = f"{readable(cost.checkpoint_bytes, 'B')} in {cost.write_s:.1f} s, {cost.steps} steps meanwhile"
        lines["checkpoint"] = f"{written}, slowed down by {cost.slow_down:.1%}; the loop stood {cost.stop_ms:.0f} ms"
    if graphs := result.graph:
        lines["plain steps"], lines["CUDA graph"] = _whole_step(graphs.plain), _whole_step(graphs.graph)
        lines["CUDA graph"] += f", {graphs.speed_up:.2f} times as fast, recorded in {graphs.record_s:.1f} s"
    for name, text in lines.items():
        out.print(f"{name:<12}  {text}", **AS_IT_IS)
    rows: dict[str, StepSpeed] = {"weight norm off": result.weight_norm_off, "weight norm on": result.weight_norm_on}
    if result.peer:
        rows["peer"] = result.peer
        engine = f"{result.peer.engine}: ours is {result.peer.ratio:.2f} times as fast"
        if ratio := result.peer.graph_ratio:
            engine += f", and {ratio:.2f} times as a CUDA graph with weight normalisation"
        out.print(f"{'peer':<12}  {engine}", **AS_IT_IS)
    speeds = ("tokens/s", "TFLOP/s", "MFU", "step ms", "p90", "loader wait")
    print_whole(_table(speeds, {name: _speed_cells(speed) for name, speed in rows.items()}))
    parts = {name: [f"{ms:.1f}" for ms in speed.parts_ms.values()] for name, speed in rows.items()}
    print_whole(_table(tuple(result.weight_norm_on.parts_ms), parts, "ms per step"))


def _table(columns: Sequence[str], rows: Mapping[str, Sequence[str]], corner: str = "") -> Table:
    """Numbers by column and row; narrow enough for 80 characters."""
    table = Table(box=None, pad_edge=False)
    table.add_column(corner)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name, cells in rows.items():
        table.add_row(name, *cells)
    return table


def _whole_step(step: "WholeStep") -> str:
    busy = "" if step.busy_share is None else f", GPU busy {step.busy_share:.0%}"
    return f"{step.step_ms_median:.1f} ms median, {step.step_ms_p90:.1f} p90, {step.tokens_per_s:,.0f} tokens/s{busy}"


def _speed_cells(speed: "StepSpeed") -> list[str]:
    mfu = "-" if speed.mfu is None else f"{speed.mfu:.1%}"
    times = [speed.step_ms_median, speed.step_ms_p90, speed.loader_wait_ms]
    return [f"{speed.tokens_per_s:,.0f}", f"{speed.tflops_per_s:.1f}", mfu, *(f"{time:.1f}" for time in times)]

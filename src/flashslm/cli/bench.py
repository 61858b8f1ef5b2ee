"""`flashslm bench`: latency of decoding and throughput of a model with random weights, on this machine."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.table import Table

from flashslm.cli.common import KernelsOption
from flashslm.cli.describe import readable

if TYPE_CHECKING:
    from flashslm.benchmarking.case import Case
    from flashslm.benchmarking.decode import ComparedPeer, DecodeResult
    from flashslm.benchmarking.throughput import ThroughputResult

bench_app = typer.Typer(no_args_is_help=True, help="Speed of a model with random weights on this machine.")

PresetOption = Annotated[str, typer.Option(help="A preset such as nemotron-flash-1b.")]
ModelOption = Annotated[str, typer.Option(help="Instead of a preset: an architecture.json, or a directory with one.")]
DeviceOption = Annotated[Literal["auto", "cpu", "cuda"], typer.Option()]
DtypeOption = Annotated[
    Literal["auto", "float32", "bfloat16"], typer.Option(help="auto: bfloat16 on CUDA, float32 on a CPU.")
]
RepeatsOption = Annotated[int, typer.Option(help="Runs of all steps.")]
OutputOption = Annotated[Path | None, typer.Option(help="Also write the JSON object to this file.")]

LARGEST = "largest"


@bench_app.command()
def decode(  # noqa: PLR0913 - one parameter an option
    preset: PresetOption = "",
    model: ModelOption = "",
    context: Annotated[int, typer.Option(help="Text tokens of a prompt.")] = 1024,
    new_tokens: Annotated[int, typer.Option(help="Decode steps after the first token.")] = 256,
    batch: Annotated[int, typer.Option(help="Sequences decoded together.")] = 1,
    peer: Annotated[
        str, typer.Option(help="hf: the same shape in transformers, or qwen3-0.6b where it has none; hf:PRESET.")
    ] = "",
    device: DeviceOption = "auto",
    dtype: DtypeOption = "auto",
    kernels: KernelsOption = None,
    repeats: RepeatsOption = 3,
    output: OutputOption = None,
) -> None:
    """Time to first token, time per token, memory bandwidth use, each operator's share; the last line is JSON."""
    from flashslm.benchmarking.decode import bench_decode
    from flashslm.ops.kernels import read_setting

    case = make_case(preset, model, context, new_tokens, batch, (device, dtype), repeats)
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
    result = bench_throughput(case, read_setting(kernels), largest=batch == LARGEST)
    show_throughput(result)
    finish(result, output)


def make_case(
    preset: str, model: str, context: int, new_tokens: int, batch: int, where: tuple[Any, Any], repeats: int
) -> "Case":
    """The case these options describe; `where` is device and dtype. ValueError says what is wrong with them."""
    from flashslm.benchmarking.case import Case
    from flashslm.cli.describe import read_architecture
    from flashslm.hardware import pick_device, pick_dtype
    from flashslm.models.presets import preset as find_preset

    if bool(preset) == bool(model):
        raise ValueError("give one of --preset, such as --preset nemotron-flash-1b, and --model")
    architecture = find_preset(preset) if preset else read_architecture(model)
    device = pick_device(where[0])
    dtype = pick_dtype(where[1], device)
    return Case(preset or model, architecture, context, new_tokens, batch, device, dtype, repeats)


def finish(result: "DecodeResult | ThroughputResult", output: Path | None) -> None:
    """The JSON object, in the file too if there is one to write."""
    text = result.model_dump_json()
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(text + "\n", encoding="utf-8")
    print(text)


def show_decode(result: "DecodeResult") -> None:
    lines = {
        "TTFT": f"{result.ttft_ms:.2f} ms",
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
        out.print(f"{name:<12}  {text}", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for column in ("operator", "ms per step", "share"):
        table.add_column(column, justify="left" if column == "operator" else "right")
    for name, share in result.operator_share.items():
        table.add_row(name, f"{share * result.tpot_ms_median:.4f}", f"{share:.1%}")
    out.print(table)


def show_peer(peer: "ComparedPeer") -> None:
    text = f"{peer.preset} in {peer.engine}: TPOT {peer.tpot_ms_median:.4f} ms, {peer.ratio:.2f} times ours"
    Console().print(f"{'peer':<12}  {text}", highlight=False, markup=False, soft_wrap=True)

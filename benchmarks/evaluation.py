"""Measure evaluation on this machine: items like HellaSwag's beside the harness's hf model, and perplexity at 32k.

    python benchmarks/evaluation.py [--operators TEXT] [--width 768] [--vocabulary 32768] [--items 10042]
                                    [--hf-items 1000] [--hf-batch 64] [--preset nemotron-flash-1b] [--context 32768]
                                    [--documents 8] [--windows 1] [--repeats 3] [--heads chunked fused] [--output FILE]

An item is a context and four endings of random tokens, in lengths like HellaSwag's. Ours scores all items, `repeats`
times; the harness's hf model scores the first `hf-items` of them once, after a warm-up, with the same weights as
exported, in the same precision; how many choices agree and the largest difference in nats are part of the record.
Perplexity reads documents of `context` tokens with the preset's shape (empty: the small model's) and random weights.
Its `heads` are backends of the last part, the tokens' log-probabilities: `chunked`, and on a GPU `fused`, which never
writes a logit (`ops/fused/token_scores.py`); without the option that which evaluation runs is measured. `head_ms` is
that part alone, for as many tokens as are read at a time.
On a CPU give small sizes, such as --width 256 --vocabulary 1024 --items 40 --hf-items 40 --preset "" --context 2048.
Writes benchmarks/results/evaluation_<device>_<date>.json; the last line of stdout is that record.
"""

import argparse
import importlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from flashslm.benchmarking.options import COUNT, OPERATORS, OUTPUT, before_work, script_parser
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.config import ExportConfig, ModelConfig
from flashslm.data.tokenizer import load_tokenizer, save_tokenizer, train_tokenizer
from flashslm.evaluation.lm_eval_adapter import HybridLMAdapter
from flashslm.evaluation.perplexity import Reading, document_nats
from flashslm.evaluation.scoring import BATCH_TOKENS, CHUNK_TOKENS
from flashslm.export.huggingface import export_huggingface
from flashslm.hardware import DeviceKind, pick_device, pick_dtype
from flashslm.infra.state_files import require_writable
from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture, build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.presets import PRESETS, preset
from flashslm.models.random_weights import random_model
from flashslm.ops import kernels
from flashslm.ops.token_scores import HeadInputs, ScoreTokens, token_scores_chunked

RESULTS = Path(__file__).parent / "results"
ENDINGS = 4
USUAL_HEAD = {"cpu": "chunked", "cuda": "fused"}  # in half precision
CONTEXT_TOKENS, ENDING_TOKENS = (20, 110), (8, 45)  # uniform; HellaSwag's means with 32k tokens are near the middle
WARM_ITEMS = 64
SPREAD = 20.0  # of the embedding, so that a random model's choices differ by more than rounding

Request = tuple[tuple[str, str], list[int], list[int]]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    given = parser.parse_args(arguments)
    device = pick_device("auto")
    with before_work(parser):
        output = require_writable(given.output or RESULTS / f"{result_name('evaluation', device)}.json")
        require_usable(given, device)
    facts = record_facts(device)
    record: dict[str, Any] = {"subject": "evaluation", **facts, "dtype": pick_dtype("auto", device)}
    record["choice_task"] = choice_task(given, device)
    record["perplexity"] = perplexity(given, device)
    record["kernels"] = kernels.decisions()
    write_record(output, record)
    print(json.dumps(record))
    return 0


def require_usable(given: argparse.Namespace, device: DeviceKind) -> None:
    """ValueError for sizes that do not fit or a backend that runs elsewhere, ImportError without the harness."""
    importlib.import_module("lm_eval")
    choice_architecture(given)
    if "fused" in (given.heads or ()) and device != "cuda":
        raise ValueError("--heads fused needs a GPU, and this machine has no usable one: give --heads chunked")


def choice_architecture(given: argparse.Namespace) -> Architecture:
    """The small model's."""
    return build_architecture(given.operators, given.width, ModelConfig(max_position_embeddings=2048), given.vocabulary)


def choice_task(given: argparse.Namespace, device: DeviceKind) -> dict[str, Any]:
    """Items per second of both, and whether they choose the same endings."""
    dtype = pick_dtype("auto", device)
    requests = choice_requests(given.items, given.vocabulary)
    compared = requests[: ENDINGS * min(given.hf_items, given.items)]
    architecture = choice_architecture(given)
    with tempfile.TemporaryDirectory() as directory:
        model = HybridLM.build(architecture, seed=0).eval()
        with torch.no_grad():
            model.embedding.weight *= SPREAD
        _export(model, Path(directory), dtype)
        model = model.cast(getattr(torch, dtype)).to(device)
        adapter = HybridLMAdapter(model, load_tokenizer(Path(directory) / "tokenizer"))
        adapter._loglikelihood_tokens(requests[: ENDINGS * WARM_ITEMS])
        seconds = [timed(lambda: adapter._loglikelihood_tokens(requests), device)[0] for _ in range(given.repeats)]
        ours = adapter._loglikelihood_tokens(compared)
        peer = _hf_model(Path(directory) / "huggingface", device, dtype, given.hf_batch)
        peer._loglikelihood_tokens(compared[: ENDINGS * WARM_ITEMS], disable_tqdm=True)
        peer_s, theirs = timed(lambda: peer._loglikelihood_tokens(compared, disable_tqdm=True), device)
    return {
        "operators": given.operators,
        "parameters": parameters(architecture)["total"],
        "items": given.items,
        "items_s": seconds,
        "items_per_s": given.items / statistics.median(seconds),
        "hf_items": len(compared) // ENDINGS,
        "hf_batch": given.hf_batch,
        "hf_s": peer_s,
        "hf_items_per_s": len(compared) / ENDINGS / peer_s,
        "same_choices": sum(a == b for a, b in zip(choices(ours), choices(theirs), strict=True)),
        "largest_difference_nats": max(abs(a[0] - b[0]) for a, b in zip(ours, theirs, strict=True)),
    }


def choice_requests(items: int, vocabulary: int) -> list[Request]:
    """As the harness makes them, four per item, with texts that no two share."""
    generator = torch.Generator().manual_seed(0)

    def draw(low: int, high: int) -> list[int]:
        count = int(torch.randint(low, high, (1,), generator=generator))
        ids: list[int] = torch.randint(1, vocabulary, (count,), generator=generator).tolist()
        return ids

    found = []
    for item in range(items):
        context = [0, *draw(*CONTEXT_TOKENS)]
        found += [((f"{item}", f"{ending}"), context, draw(*ENDING_TOKENS)) for ending in range(ENDINGS)]
    return found


def choices(scores: list[Any]) -> list[int]:
    """The ending of each item with the highest log-likelihood."""
    nats = [score[0] for score in scores]
    rows = [nats[i : i + ENDINGS] for i in range(0, len(nats), ENDINGS)]
    return [row.index(max(row)) for row in rows]


def perplexity(given: argparse.Namespace, device: DeviceKind) -> dict[str, Any]:
    """Predicted tokens per second over documents of one whole context."""
    if given.preset:
        architecture = preset(given.preset)
    else:
        architecture = build_architecture(given.operators, given.width, ModelConfig(), given.vocabulary)
    needed = given.context + architecture.num_meta_tokens
    architecture = architecture.model_copy(update={"max_position_embeddings": needed})
    torch.manual_seed(0)
    model = random_model(architecture, device, getattr(torch, pick_dtype("auto", device))).eval()
    texts = torch.randint(architecture.vocab_size, (given.documents, given.context + 1))
    reading = Reading(given.context, given.context, given.windows)

    def measured(backend: ScoreTokens) -> dict[str, Any]:
        def read(documents: int) -> tuple[float, ...]:
            return document_nats(model, lambda number: texts[number], [given.context] * documents, reading, backend)

        read(given.windows)
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rounds = [timed(lambda: read(given.documents), device) for _ in range(given.repeats)]
        seconds = [s for s, _ in rounds]
        return {
            "seconds": seconds,
            "tokens_per_s": given.documents * given.context / statistics.median(seconds),
            "nats_per_token": sum(rounds[0][1]) / (given.documents * given.context),
            "peak_bytes": torch.cuda.max_memory_allocated() if device == "cuda" else None,
            "head_ms": head_ms(backend, model, given, device),
        }

    return {
        "preset": given.preset,
        "operators": architecture.operators,
        "parameters": parameters(architecture)["total"],
        "context": given.context,
        "documents": given.documents,
        "windows_at_a_time": given.windows,
        "heads": {name: measured(head_backend(name)) for name in given.heads or [USUAL_HEAD[device]]},
    }


def head_backend(name: str) -> ScoreTokens:
    """`chunked` or `fused`."""
    if name == "chunked":
        return token_scores_chunked
    from flashslm.ops.fused.token_scores import token_scores_triton

    return token_scores_triton


@torch.inference_mode()
def head_ms(backend: ScoreTokens, model: HybridLM, given: argparse.Namespace, device: DeviceKind) -> list[float]:
    """Milliseconds of the log-probabilities of one chunk of random hidden states."""
    weight = model.embedding.weight
    tokens = min(given.context, max(CHUNK_TOKENS[device], BATCH_TOKENS[device]))
    hidden_ND = torch.randn(tokens, weight.shape[1], dtype=weight.dtype, device=weight.device)
    ids_N = torch.randint(len(weight), (tokens,), device=weight.device)
    inputs = HeadInputs(hidden_ND, weight, ids_N)
    return [1e3 * timed(lambda: backend(inputs), device)[0] for _ in range(given.repeats + 1)][1:]


def timed(work: Callable[[], Any], device: DeviceKind) -> tuple[float, Any]:
    """Seconds until the device has finished, and what was returned."""
    started = time.perf_counter()
    found = work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - started, found


def _export(model: HybridLM, directory: Path, dtype: str) -> None:
    """As the harness reads it, with a tokenizer that no request uses."""
    save_tokenizer(train_tokenizer(["the river and the stone"], 258), directory / "tokenizer")
    export_huggingface(model, directory / "tokenizer", directory / "huggingface", ExportConfig(dtype=dtype))


def _hf_model(exported: Path, device: DeviceKind, dtype: str, batch_size: int) -> Any:
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(exported), trust_remote_code=True, device=device, dtype=dtype, batch_size=batch_size)


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("--operators", type=OPERATORS, default="(DFMF AFMF)x2")
    parser.add_argument("--width", type=COUNT, default=768)
    parser.add_argument("--vocabulary", type=COUNT, default=32768)
    parser.add_argument("--items", type=COUNT, default=10042)
    parser.add_argument("--hf-items", type=COUNT, default=1000)
    parser.add_argument("--hf-batch", type=COUNT, default=64)
    parser.add_argument("--preset", choices=["", *PRESETS], default="nemotron-flash-1b")
    parser.add_argument("--context", type=COUNT, default=32768)
    parser.add_argument("--documents", type=COUNT, default=8)
    parser.add_argument("--windows", type=COUNT, default=1)
    parser.add_argument("--repeats", type=COUNT, default=3)
    parser.add_argument("--heads", nargs="+", choices=["chunked", "fused"])
    parser.add_argument("--output", type=OUTPUT)
    return parser


if __name__ == "__main__":
    raise SystemExit(main())

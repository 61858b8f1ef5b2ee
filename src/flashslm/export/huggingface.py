"""A HybridLM as a Hugging Face directory that transformers loads with its own code and TensorRT-LLM reads."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors.torch import save_file

from flashslm.config import ExportConfig
from flashslm.export.files import whole_directory, write_json
from flashslm.export.hf_config import config_from_architecture
from flashslm.export.names import exported_names, exported_shapes
from flashslm.export.tokenizer import write_tokenizer
from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM

TEMPLATES = Path(__file__).parent / "templates"
CONFIGURATION_FILE = "configuration_nemotron_flash.py"
MODELING_FILE = "modeling_nemotron_flash.py"


class ExportSummary(BaseModel):
    """What an export wrote: bytes by file name, and the model's identity."""

    model_config = ConfigDict(frozen=True)

    directory: str
    architecture_digest: str
    dtype: str
    num_parameters: int
    num_bytes: int
    files: dict[str, int]


def export_huggingface(model: HybridLM, tokenizer_dir: Path, directory: Path, config: ExportConfig) -> ExportSummary:
    """Write the whole directory, or nothing.

    Weights are stored in `config.dtype`. Raises InfeasibleArchitecture for sizes the format cannot hold, ValueError
    for a tokenizer that does not fit, FileExistsError when the directory has content.
    """
    architecture = model.architecture
    with whole_directory(directory) as temporary:
        text_tokens = architecture.max_position_embeddings - architecture.num_meta_tokens
        ids = write_tokenizer(tokenizer_dir, temporary, architecture.vocab_size, text_tokens)
        write_json(temporary / "config.json", config_from_architecture(architecture, config.dtype, ids))
        write_json(temporary / "generation_config.json", ids)
        for name in (CONFIGURATION_FILE, MODELING_FILE):
            shutil.copyfile(TEMPLATES / name, temporary / name)
        (temporary / "README.md").write_text(_readme(architecture, config.dtype), encoding="utf-8")
        _write_weights(model, temporary, getattr(torch, config.dtype), config.max_shard_bytes)
        return summarize(architecture, config.dtype, temporary, directory)


def summarize(architecture: Architecture, dtype: str, written: Path, directory: Path) -> ExportSummary:
    """Sum up the files in `written` for an export that will stand at `directory`."""
    files = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
    return ExportSummary(
        directory=str(directory),
        architecture_digest=architecture.digest,
        dtype=dtype,
        num_parameters=parameters(architecture)["total"],
        num_bytes=sum(files.values()),
        files=files,
    )


def exported_tensors(model: HybridLM, dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
    """Exported name and tensor (CPU, contiguous, `dtype`), one at a time, in the model's order."""
    names, shapes = exported_names(model.architecture), exported_shapes(model.architecture)
    state = model.state_dict()
    if set(state) != set(names):
        raise RuntimeError(f"HybridLM's parameters and the export table differ: {sorted(set(state) ^ set(names))}")
    for ours, theirs in names.items():
        yield theirs, state[ours].detach().to("cpu", dtype).reshape(shapes[theirs]).contiguous()


def _write_weights(model: HybridLM, directory: Path, dtype: torch.dtype, max_shard_bytes: int) -> None:
    """model.safetensors, or shards of at most `max_shard_bytes` (a larger tensor has its own) with their index."""
    shards = _plan_shards(exported_shapes(model.architecture), dtype.itemsize, max_shard_bytes)
    count = len(shards)
    files = [
        f"model-{i:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors" for i in range(1, count + 1)
    ]
    tensors = exported_tensors(model, dtype)
    for file, names in zip(files, shards, strict=True):
        save_file(dict(next(tensors) for _ in names), directory / file, metadata={"format": "pt"})
    if count > 1:
        total_bytes = parameters(model.architecture)["total"] * dtype.itemsize
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        index = {"metadata": {"total_size": total_bytes}, "weight_map": weight_map}
        write_json(directory / "model.safetensors.index.json", index)


def _plan_shards(shapes: dict[str, tuple[int, ...]], itemsize: int, max_shard_bytes: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled_bytes = 0
    for name, shape in shapes.items():
        size_bytes = itemsize * torch.Size(shape).numel()
        if shards[-1] and filled_bytes + size_bytes > max_shard_bytes:
            shards.append([])
            filled_bytes = 0
        shards[-1].append(name)
        filled_bytes += size_bytes
    return shards


def _readme(architecture: Architecture, dtype: str) -> str:
    a = architecture
    counts = {name: a.operators.count(letter) for letter, name in zip("ADMF", _KINDS, strict=True)}
    facts = {
        "parameters": f"{parameters(a)['total']:,} (embedding counted once: it is also the head)",
        "operators": f"`{a.operators}` (" + ", ".join(f"{count} {name}" for name, count in counts.items()) + ")",
        "hidden size / FFN width": f"{a.hidden_size} / {a.ffn_size}",
        "heads / key-value heads / head size": f"{a.num_heads} / {a.num_kv_heads} / {a.head_dim}",
        "Mamba-2 inner / heads / state": f"{a.mamba_inner} / {a.mamba_heads} / {a.mamba_state}",
        "vocabulary": f"{a.vocab_size}",
        "memory (meta) tokens": f"{a.num_meta_tokens}",
        "context": f"{a.max_position_embeddings - a.num_meta_tokens} text tokens after the memory tokens",
        "weights": dtype,
        "architecture digest": f"`{a.digest}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    return _README.format(table=table)


_KINDS = ("attention", "DeltaNet", "Mamba-2", "FFN")
_README = """# Hybrid language model

| | |
|---|---|
{table}

Every layer is `x + operator(RMSNorm(x))`; the notation is D DeltaNet, M Mamba-2, A attention, F feed-forward.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype="auto")
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0]))
```

- The memory tokens are learned vectors that this code puts before every sequence; the tokenizer does not know them.
- Logits are not divided by the norms of the head's rows.
- Padding on either side is exact, given an attention mask.
"""

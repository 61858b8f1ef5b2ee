"""Hold an export to its contract from config.json alone; TensorRT-LLM's loader skips a misspelt tensor in silence."""

from pathlib import Path
from typing import Any, NamedTuple

from flashslm.export.files import TensorHeader, read_headers, read_json, weight_files
from flashslm.export.hf_config import TOKEN_IDS, ConfigMismatch, architecture_from_config, config_problems
from flashslm.export.names import exported_shapes
from flashslm.export.tokenizer import tokenizer_length

FORMAT_DTYPES = {"bfloat16": "BF16", "float32": "F32"}
REQUIRED_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)


class Problem(NamedTuple):
    """What is wrong (`subject`: a file, a tensor or a field) and how."""

    subject: str
    message: str

    def __str__(self) -> str:
        return f"{self.subject}: {self.message}"


def verify_export(directory: Path) -> list[Problem]:
    """Check files, fields, every tensor's name, shape and dtype, and the tokenizer's length; empty = all right.

    Serves the Hugging Face directory and the TensorRT-LLM bundle. Weights are not read, only their headers.
    """
    if problems := _unreadable_files(directory):
        return problems
    config = read_json(directory / "config.json")
    if messages := config_problems(config):
        return [Problem("config.json", message) for message in messages]
    return [
        *_code_problems(directory, config),
        *_tensor_problems(directory, config),
        *_token_problems(directory, config),
    ]


def _unreadable_files(directory: Path) -> list[Problem]:
    problems = []
    for name in REQUIRED_FILES:
        try:
            read_json(directory / name)
        except FileNotFoundError:
            problems.append(Problem(name, "file is missing"))
        except ValueError as error:
            problems.append(Problem(name, f"not valid JSON ({error})"))
    return problems


def _code_problems(directory: Path, config: dict[str, Any]) -> list[Problem]:
    files = [f"{reference.split('.')[0]}.py" for reference in config["auto_map"].values()]
    return [Problem(name, "auto_map names it, it is missing") for name in files if not (directory / name).is_file()]


def _tensor_problems(directory: Path, config: dict[str, Any]) -> list[Problem]:
    try:
        shapes = exported_shapes(architecture_from_config(config))
        found = _stored_tensors(directory)
    except (ConfigMismatch, ValueError, OSError) as error:
        return [Problem("config.json" if isinstance(error, ConfigMismatch) else "weights", str(error))]
    dtype = FORMAT_DTYPES[config["dtype"]]
    problems = [Problem(name, "tensor is missing") for name in shapes if name not in found]
    problems += [Problem(name, "no tensor of this model") for name in found if name not in shapes]
    for name in shapes.keys() & found.keys():
        if found[name].shape != shapes[name]:
            problems.append(Problem(name, f"shape is {list(found[name].shape)}, expected {list(shapes[name])}"))
        if found[name].dtype != dtype:
            problems.append(Problem(name, f"dtype is {found[name].dtype}, expected {dtype}"))
    return problems


def _stored_tensors(directory: Path) -> dict[str, TensorHeader]:
    """All tensors; raises ValueError where index and files disagree."""
    per_file = {path.name: read_headers(path) for path in weight_files(directory)}
    tensors = {name: header for headers in per_file.values() for name, header in headers.items()}
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        stored = {name: file for file, headers in per_file.items() for name in headers}
        listed = read_json(index)["weight_map"]
        differing = sorted({name for name in listed.keys() | stored.keys() if listed.get(name) != stored.get(name)})
        if differing:
            raise ValueError(f"{index.name} and the shards disagree about {', '.join(differing[:5])}")
    return tensors


def _token_problems(directory: Path, config: dict[str, Any]) -> list[Problem]:
    problems = []
    length = tokenizer_length(directory)
    if length > config["vocab_size"]:
        message = f"{length} tokens, vocab_size is {config['vocab_size']}: the memory tokens' ids would shift"
        problems.append(Problem("tokenizer.json", message))
    generation = read_json(directory / "generation_config.json")
    for name in TOKEN_IDS:
        if generation.get(name) != config[name]:
            problems.append(
                Problem("generation_config.json", f"{name} is {generation.get(name)!r}, not {config[name]}")
            )
    tokenizer_class = read_json(directory / "tokenizer_config.json").get("tokenizer_class")
    if tokenizer_class != "PreTrainedTokenizerFast":
        problems.append(Problem("tokenizer_config.json", f"tokenizer_class is {tokenizer_class!r}"))
    return problems

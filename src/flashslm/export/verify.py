"""Hold an export to its contract from config.json alone; TensorRT-LLM's loader skips a misspelt tensor in silence."""

import ast
import importlib.util
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flashslm.export.autodeploy import RECIPE_FILE, RECIPE_FILES, read_recipe, recipe_problems
from flashslm.export.files import (
    INDEX_FILE,
    StoredTensor,
    read_object,
    stored_tensors,
    tensor_bytes,
    tensor_framework,
    weight_files,
)
from flashslm.export.hf_config import (
    FIELDS,
    TOKEN_IDS,
    ConfigMismatch,
    architecture_from_config,
    config_problems,
    export_problems,
    shown,
)
from flashslm.export.model_code import foreign_code
from flashslm.export.names import exported_shapes
from flashslm.export.published import ignored_fields
from flashslm.export.tokenizer import USE, beginning_problems, special_token_ids, tokenizer_problems, unknown_tokens
from flashslm.models.architecture import Architecture

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)
README = "README.md"
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
    """Check files, fields, every tensor's name, shape and dtype, the tokenizer, the recipe; empty = all right.

    Serves the Hugging Face directory and the TensorRT-LLM bundle. Code must be this project's to the byte. Weights are
    read one tensor at a time: every value must be finite, and no matrix constant.
    """
    if not directory.is_dir():
        return [Problem(str(directory), "no such directory: give an export such as runs/latest/export/huggingface")]
    if problems := _unreadable_files(directory):
        return problems
    config = read_object(directory / "config.json")
    if messages := config_problems(config):
        return [Problem("config.json", message) for message in messages]
    try:
        architecture = architecture_from_config(config)
    except ConfigMismatch as error:
        return [Problem("config.json", str(error).removeprefix("config.json: "))]
    return [
        *(Problem("config.json", message) for message in export_problems(architecture)),
        *_surplus_problems(config),
        *_code_problems(directory, config),
        *_weight_problems(directory, exported_shapes(architecture), FORMAT_DTYPES[config["dtype"]]),
        *_token_problems(directory, config),
        *_recipe_problems(directory, config, architecture),
        *([] if (directory / README).is_file() else [Problem(README, "file is missing: it says how to run the model")]),
    ]


def count_checked(directory: Path) -> dict[str, int]:
    """How much of a sound directory `verify_export` looked at: tensors, fields of config.json, files."""
    names = {*REQUIRED_FILES, README, *(path.name for path in weight_files(directory)), *_code_files(directory)}
    recipes = [file for file in RECIPE_FILES if (directory / file).is_file()]
    return {"tensors": len(stored_tensors(directory)), "fields": len(FIELDS), "files": len([*names, *recipes])}


def tensor_problems(
    found: dict[str, StoredTensor], shapes: dict[str, tuple[int, ...]], dtypes: dict[str, tuple[str, ...]]
) -> list[Problem]:
    """Where stored tensors are not those of `shapes` (by name) in one of their `dtypes`."""
    problems = [Problem(name, "tensor is missing") for name in shapes if name not in found]
    problems += [Problem(name, "no tensor of this model") for name in found if name not in shapes]
    for name, shape in shapes.items():
        if name not in found:
            continue
        if found[name].shape != shape:
            problems.append(Problem(name, f"shape is {list(found[name].shape)}, expected {list(shape)}"))
        if found[name].dtype not in dtypes[name]:
            problems.append(Problem(name, f"dtype is {found[name].dtype}, expected {' or '.join(dtypes[name])}"))
    return problems


def _unreadable_files(directory: Path) -> list[Problem]:
    problems = []
    for name in REQUIRED_FILES:
        try:
            read_object(directory / name)
        except FileNotFoundError:
            problems.append(Problem(name, "file is missing"))
        except OSError as error:
            problems.append(Problem(name, f"cannot be read ({error.strerror})"))
        except ValueError as error:
            problems.append(Problem(name, str(error).removeprefix(f"{name} ")))
    return problems


def _surplus_problems(config: dict[str, Any]) -> list[Problem]:
    """Fields that no export has: a runtime may act on them, as all do on quantization_config."""
    problems = [f"{name} is {shown(config[name])}: no field of this format" for name in ignored_fields(config)]
    if config.get("torch_dtype", config["dtype"]) != config["dtype"]:
        problems.append(f"torch_dtype is {shown(config['torch_dtype'])} and dtype {config['dtype']!r}: which one?")
    return [Problem("config.json", message) for message in problems]


def _code_files(directory: Path) -> list[str]:
    return [f"{path.split('.')[0]}.py" for path in read_object(directory / "config.json")["auto_map"].values()]


def _code_problems(directory: Path, config: dict[str, Any]) -> list[Problem]:
    """Whether each file that auto_map names defines the class that it names there, and all code is this project's."""
    problems = []
    for reference in config["auto_map"].values():
        module, _, name = reference.rpartition(".")
        file = f"{module}.py"
        try:
            tree = ast.parse((directory / file).read_text(encoding="utf-8"))
        except FileNotFoundError:
            problems.append(Problem(file, "auto_map names it, it is missing"))
            continue
        except (SyntaxError, ValueError) as error:
            problems.append(Problem(file, f"not valid Python ({error})"))
            continue
        if name not in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}:
            problems.append(Problem(file, f"auto_map names class {name}, which it does not define"))
    known = {problem.subject for problem in problems}
    return problems + [Problem(file, said) for file, said in foreign_code(directory).items() if file not in known]


def _weight_problems(directory: Path, shapes: dict[str, tuple[int, ...]], dtype: str) -> list[Problem]:
    try:
        found = stored_tensors(directory)
        loaded = {path.name for path in weight_files(directory)}
    except (ValueError, OSError) as error:
        return [Problem("weights", str(error))]
    strays = sorted({path.name for path in directory.glob("*.safetensors")} - loaded)
    problems = [Problem(name, "the index does not name it: a loader skips its tensors") for name in strays]
    problems += tensor_problems(found, shapes, dict.fromkeys(shapes, (dtype,)))
    frameworks = ((path.name, tensor_framework(path)) for path in weight_files(directory))
    problems += [
        Problem(name, f"its metadata's format is {shown(framework)}: transformers 4.57 loads only 'pt'")
        for name, framework in frameworks
        if framework not in ("pt", None)
    ]
    if not problems:
        problems = _value_problems({name: found[name] for name in shapes})
    return problems + _index_problems(directory)


def _value_problems(tensors: dict[str, StoredTensor]) -> list[Problem]:
    """Where values cannot be a trained model's. Without torch, as in an image that only serves, none are read."""
    if importlib.util.find_spec("torch") is None:
        _log.warning("torch is not installed: the values of the weights are not checked")
        return []
    from flashslm.export.weights import read_tensor

    found = ((name, _value_problem(read_tensor(stored, name))) for name, stored in tensors.items())
    return [Problem(name, said) for name, said in found if said]


def _value_problem(tensor: "torch.Tensor") -> str:
    """What is wrong with a tensor's values. A vector may be constant: a norm's weight begins as ones."""
    if bad := int((~tensor.isfinite()).sum()):
        return f"{bad} of {tensor.numel()} values are not finite"
    if tensor.ndim > 1 and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
        return f"all {tensor.numel()} values are {tensor.flatten()[0].item():g}: the weights were never written"
    return ""


def _index_problems(directory: Path) -> list[Problem]:
    """Whether an index states what its tensors take; transformers loads none without `metadata`."""
    if not (directory / INDEX_FILE).is_file():
        return []
    metadata = read_object(directory / INDEX_FILE).get("metadata")
    stated = metadata.get("total_size") if isinstance(metadata, dict) else None
    total_bytes = sum(map(tensor_bytes, weight_files(directory)))
    said = f"metadata.total_size is {shown(stated)}: the tensors take {total_bytes} bytes"
    return [] if stated == total_bytes else [Problem(INDEX_FILE, said)]


def _token_problems(directory: Path, config: dict[str, Any]) -> list[Problem]:
    problems = [Problem("tokenizer.json", message) for message in tokenizer_problems(directory, config["vocab_size"])]
    if not problems:
        begun = beginning_problems(directory, config["bos_token_id"])
        problems = [Problem("tokenizer.json", message) for message in begun] + _role_problems(directory, config)
    generation = read_object(directory / "generation_config.json")
    for name in TOKEN_IDS:
        if type(generation.get(name)) is not int or generation[name] != config[name]:
            problems.append(
                Problem("generation_config.json", f"{name} is {shown(generation.get(name))}, not {config[name]}")
            )
    return problems + _tokenizer_config_problems(directory, config)


def _role_problems(directory: Path, config: dict[str, Any]) -> list[Problem]:
    """Which of the files that name special tokens name others than config.json and tokenizer.json have."""
    problems = []
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        found = special_token_ids(directory, file)
        for name in TOKEN_IDS:
            if found.get(name) != config[name]:
                said = f"{name.removesuffix('_id')} has id {found.get(name)}, config.json's {name} is {config[name]}"
                problems.append(Problem(file, said))
        shift = "which tokenizer.json does not have: the memory tokens' ids would shift"
        problems += [Problem(file, f"names {shown(token)}, {shift}") for token in unknown_tokens(directory, file)]
    if (directory / _LEGACY_TOKENS).exists():
        problems.append(Problem(_LEGACY_TOKENS, "transformers adds its tokens to those of tokenizer.json: remove it"))
    return problems


_LEGACY_TOKENS = "added_tokens.json"


def _tokenizer_config_problems(directory: Path, config: dict[str, Any]) -> list[Problem]:
    """The class that every version of transformers knows, inputs and padding as the model wants them, no more text than
    there are positions for.
    """
    found = read_object(directory / "tokenizer_config.json")
    length, text_tokens = found.get("model_max_length"), config["max_position_embeddings"] - config["num_memory_tokens"]
    problems = [
        f"{name} is {shown(found.get(name))}: expected {value!r}"
        for name, value in USE.items()
        if found.get(name) != value
    ]
    if found.get("tokenizer_class") != "PreTrainedTokenizerFast":
        problems.append(f"tokenizer_class is {shown(found.get('tokenizer_class'))}: expected 'PreTrainedTokenizerFast'")
    if type(length) is not int or not 1 <= length <= text_tokens:
        problems.append(
            f"model_max_length is {shown(length)}: expected 1 to {text_tokens}, the positions less the memory tokens"
        )
    return [Problem("tokenizer_config.json", message) for message in problems]


def _recipe_problems(directory: Path, config: dict[str, Any], architecture: Architecture) -> list[Problem]:
    """A bundle has at least the recipe for TensorRT-LLM 1.2; those of earlier exports have no other."""
    problems = []
    if not (directory / RECIPE_FILE).is_file() and "AutoModelForCausalLM" not in config["auto_map"]:
        problems.append(Problem(RECIPE_FILE, "file is missing: auto_map names no model, so the directory is a bundle"))
    for file in (file for file in RECIPE_FILES if (directory / file).is_file()):
        try:
            messages = recipe_problems(read_recipe(directory / file), architecture, file)
        except ValueError as error:
            messages = [str(error)]
        problems += [Problem(file, message) for message in messages]
    return problems

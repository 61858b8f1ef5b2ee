"""An export, or a published Nemotron-Flash checkpoint, back as a HybridLM: bit for bit, nothing rounded."""

from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict

from flashslm.config import WeightFormat
from flashslm.export.files import StoredTensor, read_object, stored_tensors, whole_directory
from flashslm.export.hf_config import ConfigMismatch, architecture_from_config, served_weights
from flashslm.export.names import EMBEDDING, HEAD_WEIGHT, MEMORY_TOKENS, exported_names, exported_shapes
from flashslm.export.published import ignored_fields, plain_config
from flashslm.export.tokenizer import copy_tokenizer_files
from flashslm.export.verify import tensor_problems
from flashslm.export.weights import has_unit_rows, read_tensor, row_norm_range
from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import FP32_PARAMETERS, HybridLM
from flashslm.models.serialization import save_model

# Formats that a parameter of each dtype holds exactly.
_HELD = {torch.float32: ("F32", "BF16", "F16"), torch.bfloat16: ("BF16",)}


class ImportSummary(BaseModel):
    """What was read: `dtype` is the checkpoint's, row norms are the output table's, `warnings` are for a person."""

    model_config = ConfigDict(frozen=True)

    directory: str
    output: str
    operators: str
    architecture_digest: str
    num_parameters: int
    dtype: str
    output_row_norm_min: float
    output_row_norm_max: float
    warnings: list[str]


def import_model(directory: Path, output: Path | None = None) -> ImportSummary:
    """Read `directory`; with `output`, write it there as a trained model: what `models.serialization.load_model` loads,
    and its tokenizer in `tokenizer/`.

    Raises as `load_export`, and FileExistsError when `output` has content.
    """
    model = load_export(directory)
    config = read_object(directory / "config.json")
    low, high = row_norm_range(model.embedding.weight.detach())
    warnings = [] if has_unit_rows(low, high) else [_NOT_UNIT.format(low=low, high=high)]
    if ignored := ignored_fields(config):
        warnings.append(f"config.json has fields that are not read: {', '.join(ignored)}")
    if output is not None:
        with whole_directory(output) as temporary:
            save_model(model, temporary)
            if not copy_tokenizer_files(directory, temporary / "tokenizer"):
                warnings.append("the directory has no tokenizer.json: give data.tokenizer where the model is trained")
    return ImportSummary(
        directory=str(directory),
        output=str(output or ""),
        operators=model.architecture.operators,
        architecture_digest=model.architecture.digest,
        num_parameters=parameters(model.architecture)["total"],
        dtype=plain_config(config)[0]["dtype"],
        output_row_norm_min=low,
        output_row_norm_max=high,
        warnings=warnings,
    )


_NOT_UNIT = (
    "rows of the output table have norms from {low:.4g} to {high:.4g}: code that divides logits by them, as that of "
    "published models does, computes another function than this project and TensorRT-LLM, which do not divide"
)


def load_export(directory: Path, device: torch.device | str = "cpu") -> HybridLM:
    """Read an exported directory, a TensorRT-LLM bundle or a published checkpoint in its stored dtype.

    Accepts what means the same: fields left out or spelt out, `torch_dtype`, an embedding that holds the memory tokens
    too, a head that repeats it. Raises ConfigMismatch for a config.json of another kind of model, ValueError for
    tensors that do not fit; both name every problem.
    """
    if not (directory / "config.json").is_file():
        raise ValueError(f"'{directory}' has no config.json: give an exported or published model's directory")
    raw = read_object(directory / "config.json")
    config, problems = plain_config(raw)
    if problems:
        raise ConfigMismatch(f"'{directory}', config.json: {'; '.join(problems)}")
    architecture, dtype = architecture_from_config(config), getattr(torch, config["dtype"])
    stored = stored_tensors(directory)
    shapes = _accepted_shapes(architecture, stored)
    if raw.get("tie_word_embeddings") is False:
        shapes.setdefault(HEAD_WEIGHT, shapes[EMBEDDING])
    if wrong := tensor_problems(stored, shapes, _accepted_dtypes(architecture, shapes, dtype)):
        raise ValueError(f"'{directory}': " + "; ".join(map(str, wrong)))
    if problems := _repeated_rows_problems(architecture, stored):
        raise ValueError(f"'{directory}': " + "; ".join(problems))
    model = HybridLM.build(architecture, device, dtype)
    _fill(model, stored)
    return model


def read_served_weights(directory: Path) -> WeightFormat:
    """What the engine is to round a directory's weights to. Raises ConfigMismatch."""
    return served_weights(read_object(directory / "config.json"))


def _accepted_shapes(architecture: Architecture, stored: dict[str, StoredTensor]) -> dict[str, tuple[int, ...]]:
    """The exported shapes, changed to what may be stored in their place."""
    a, shapes = architecture, exported_shapes(architecture)
    text, whole = (a.vocab_size, a.hidden_size), (a.vocab_size + a.num_meta_tokens, a.hidden_size)
    for name in {EMBEDDING, HEAD_WEIGHT} & stored.keys():
        shapes[name] = whole if stored[name].shape == whole else text
    if shapes[EMBEDDING] == whole and MEMORY_TOKENS not in stored:
        shapes.pop(MEMORY_TOKENS, None)
    return shapes


def _accepted_dtypes(
    architecture: Architecture, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype
) -> dict[str, tuple[str, ...]]:
    """For each tensor the formats that its parameter holds exactly."""
    names = exported_names(architecture).items()
    fp32 = {theirs for ours, theirs in names if ours.rpartition(".")[2] in FP32_PARAMETERS}
    return {name: _HELD[torch.float32 if name in fp32 else dtype] for name in shapes}


def _repeated_rows_problems(architecture: Architecture, stored: dict[str, StoredTensor]) -> list[str]:
    """A head, and memory tokens behind the embedding's rows, must be copies: HybridLM has each once."""
    rows, problems = architecture.vocab_size, []
    embedding_VD = read_tensor(stored[EMBEDDING], EMBEDDING)
    if (
        HEAD_WEIGHT in stored
        and not (read_tensor(stored[HEAD_WEIGHT], HEAD_WEIGHT)[:rows] == embedding_VD[:rows]).all()
    ):
        problems.append(f"{HEAD_WEIGHT} differs from {EMBEDDING}: HybridLM's head is the embedding")
    twice = MEMORY_TOKENS in stored and len(embedding_VD) > rows
    if twice and not (read_tensor(stored[MEMORY_TOKENS], MEMORY_TOKENS) == embedding_VD[rows:]).all():
        problems.append(f"{MEMORY_TOKENS} differs from the last rows of {EMBEDDING}: which are they?")
    return problems


@torch.no_grad()
def _fill(model: HybridLM, stored: dict[str, StoredTensor]) -> None:
    rows, embedding = model.architecture.vocab_size, stored[EMBEDDING]
    for ours, theirs in exported_names(model.architecture).items():
        parameter = model.get_parameter(ours)
        if theirs in stored:
            tensor = read_tensor(stored[theirs], theirs)[: rows if theirs == EMBEDDING else None]
        else:
            tensor = read_tensor(embedding, EMBEDDING)[rows:]
        parameter.copy_(tensor.reshape(parameter.shape))

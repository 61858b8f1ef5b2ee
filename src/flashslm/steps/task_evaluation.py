"""Tasks of lm-evaluation-harness on one model, without a recipe. A command, no step."""

import re
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from flashslm.config import EvaluationConfig, WeightFormat
from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation import tasks
from flashslm.evaluation.harness import Asked, run_tasks
from flashslm.evaluation.request_encoding import TextEnds
from flashslm.export.text_model import TextModel
from flashslm.hardware import DeviceKind, pick_device, pick_dtype
from flashslm.inference.int8_model import as_served
from flashslm.models.hybrid import HybridLM
from flashslm.models.serialization import load_model
from flashslm.steps.named_model import NamedModel, export_in
from flashslm.steps.recipe_checks import task_problems

# In a problem's text: a file's name may begin like a setting's.
_SETTING = re.compile(rf"\bevaluation\.({'|'.join(EvaluationConfig.model_fields)})\b")


class LoadedModel(NamedTuple):
    """What the harness's adapter takes; `ends` None: those of the tokenizer."""

    model: HybridLM
    tokenizer: Any
    ends: TextEnds | None
    weights: WeightFormat


def evaluate_tasks(
    named: NamedModel,
    evaluation: EvaluationConfig,
    dataset: Path | None,
    dtype: Literal["auto", "float32", "bfloat16"] = "auto",
    weights: WeightFormat | None = None,
) -> dict[str, dict[str, float]]:
    """The results of `run_tasks`. The tasks are looked up before the model is fetched.

    A checkpoint takes the tokenizer of `dataset`. Weights None: those that an export names. Raises ValueError for wrong
    tasks, for a name without a model, and for a checkpoint without a data set that fits.
    """
    if not tasks.is_installed():
        raise ValueError("tasks need lm_eval: pip install 'flashslm[evaluation]'")
    if problems := task_problems(evaluation, runs_here=True):
        raise ValueError("\n".join(_SETTING.sub(r"\1", problem) for problem in problems))
    model, tokenizer, ends, own_weights = _load(named, dataset)
    device: DeviceKind = "cuda" if model.embedding.weight.is_cuda else "cpu"
    model = as_served(model.cast(getattr(torch, pick_dtype(dtype, device))).eval(), weights or own_weights)
    return run_tasks(model, tokenizer, Asked.of(evaluation), ends)[0]


def _load(named: NamedModel, dataset: Path | None) -> LoadedModel:
    if named.model_directory is None:
        raise ValueError(f"'{named.name}' is an evaluation without its model: give a checkpoint or an export")
    directory = named.model_directory()
    if export := export_in(directory):
        text = TextModel.open(export)
        return LoadedModel(text.load(), load_tokenizer(export), TextEnds(text.bos_id, text.end_ids), text.weights)
    if dataset is None:
        raise ValueError(
            f"'{named.name}' is a checkpoint, which has no tokenizer: give --dataset, the data set it was trained on"
        )
    model, tokenizer = load_model(directory, device=pick_device("auto")), load_tokenizer(dataset / "tokenizer")
    tokens, allowed = len(tokenizer), model.architecture.vocab_size
    if tokens > allowed:
        raise ValueError(f"the data set's tokenizer has {tokens} tokens, '{named.name}' takes at most {allowed}")
    return LoadedModel(model, tokenizer, None, "full")

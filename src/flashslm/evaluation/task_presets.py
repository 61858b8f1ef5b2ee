"""Sets of lm-evaluation-harness tasks under one name, as the paper reports them. No torch and no lm_eval here.

Nemotron-Flash (arXiv 2511.18890): eight commonsense tasks in its studies, six in section 4; MMLU and GSM8K with 5
shots, MBPP with 3, the others with none; averages are plain means of accuracies not normalised by length.
"""

import difflib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

PREFIX = "preset:"
RULER_LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)  # tokens; the harness names RULER's metrics by them


@dataclass(frozen=True)
class Preset:
    """`metrics`: each task's metric, by its name in `task_results`. `shots`: of tasks with another default."""

    metrics: Mapping[str, str]
    shots: Mapping[str, int] = field(default_factory=dict)
    is_averaged: bool = True


def _accuracies(*tasks: str) -> Preset:
    return Preset(dict.fromkeys(tasks, "acc"))


_SHARED = ("piqa", "arc_easy", "arc_challenge", "hellaswag", "winogrande")
PRESETS: Mapping[str, Preset] = {
    "commonsense_8": _accuracies("lambada_openai", *_SHARED, "truthfulqa_mc2", "social_iqa"),
    "commonsense_6": _accuracies(*_SHARED, "openbookqa"),
    "mmlu": Preset({"mmlu": "acc"}, {"mmlu": 5}, is_averaged=False),
    "gsm8k": Preset({"gsm8k": "exact_match_strict-match"}, {"gsm8k": 5}, is_averaged=False),
    "code": Preset(
        {
            "humaneval": "pass@1_create_test",
            "humaneval_plus": "pass@1_create_test",
            "mbpp": "pass_at_1",
            "mbpp_plus": "pass_at_1",
        }
    ),
    "recall": Preset(dict.fromkeys(("fda", "swde", "squad_completion"), "contains")),
    "ruler": Preset(dict.fromkeys(("niah_single_1", "niah_single_2", "niah_single_3"), "4096"), is_averaged=False),
}


def ruler_lengths(max_length: int) -> list[int]:
    """Tokens of the texts that RULER's tasks make for a model with positions for `max_length` tokens of text."""
    return [length for length in RULER_LENGTHS if length <= max_length]


def shortest_text(names: Sequence[str]) -> int:
    """Tokens of text that a model needs positions for, for any result of these; 0: no such bound."""
    ruler = PRESETS["ruler"].metrics
    asked = any(name == f"{PREFIX}ruler" or name in ruler for name in names)
    return RULER_LENGTHS[0] if asked else 0


def is_preset(name: str) -> bool:
    return name.startswith(PREFIX)


def expand(names: Sequence[str]) -> list[str]:
    """Tasks by name or file, each once: presets give theirs. Raises ValueError for an unknown preset."""
    given = (list(preset(name).metrics) if is_preset(name) else [name] for name in names)
    return list(dict.fromkeys(chain.from_iterable(given)))


def shots_of(names: Sequence[str]) -> dict[str, int]:
    """How many examples a prompt has, for the tasks of which a preset says so."""
    return {task: count for name in names if is_preset(name) for task, count in preset(name).shots.items()}


def preset(name: str) -> Preset:
    """The preset of a name with the prefix."""
    found = PRESETS.get(name.removeprefix(PREFIX))
    if found is None:
        allowed = ", ".join(PREFIX + known for known in PRESETS)
        near = difflib.get_close_matches(name, [PREFIX + known for known in PRESETS], n=1)
        raise ValueError(f"there is no '{name}'{f'; did you mean {near[0]}?' if near else ''} (allowed: {allowed})")
    return found


def problems(names: Sequence[str]) -> Iterator[str]:
    """Unknown presets, and tasks that are also named by themselves, where the shots would be another number."""
    for name in filter(is_preset, names):
        try:
            doubled = [task for task in preset(name).shots if task in names]
        except ValueError as error:
            yield str(error)
            continue
        for task in doubled:
            yield f"'{task}' is also in '{name}', with {preset(name).shots[task]} shots: name one of the two"


def averages(names: Iterable[str], results: Mapping[str, Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """By preset: the mean over its tasks, and its standard error, as the tasks' questions are independent."""
    found = {}
    for name in filter(is_preset, names):
        metrics = preset(name).metrics
        values = [results.get(task, {}).get(metric) for task, metric in metrics.items()]
        if preset(name).is_averaged and None not in values:
            errors = [results[task].get(f"{metric}_stderr", math.nan) for task, metric in metrics.items()]
            row = {"average": math.fsum(v for v in values if v is not None) / len(values)}
            row |= {"average_stderr": math.hypot(*errors) / len(errors)}
            row |= {"samples": sum(results[task]["samples"] for task in metrics)}
            found[name.removeprefix(PREFIX)] = {key: value for key, value in row.items() if math.isfinite(value)}
    return found

"""From the arguments of a KFP component to its step.

The components hold little more than their signatures: KFP copies the source of each into every record of its task.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flashslm.config.steps import STEP_SECTIONS, section_parameter
from flashslm.infra.process.collection import collection_held
from flashslm.steps.run import run_step

METRICS = "metrics"  # the output that KFP compares runs by
ONLY_FOR_THE_CACHE = {"device_digest", "source_digest"}


def run_component(step: str, arguments: Mapping[str, Any], outputs: Sequence[str] = ()) -> dict[str, Any]:
    """Run `step` with the arguments of its component, which calls this with its `locals()`; returns the step's result.

    Sections of the recipe make the step's configuration, artifacts its inputs, those named in `outputs` its outputs.
    A component declares no section and no artifact that comes with its inputs (`steps.inputs`).
    """
    parameters_of = {section: section_parameter(section) for section in STEP_SECTIONS[step]}
    sections = {section: name for section, name in parameters_of.items() if name in arguments}
    rest = {k: v for k, v in arguments.items() if k not in {*sections.values(), *outputs, *ONLY_FOR_THE_CACHE, METRICS}}
    parameters = {k: v for k, v in rest.items() if isinstance(v, str)}
    with collection_held():
        result = run_step(
            step,
            config=json.dumps({section: arguments[name] for section, name in sections.items()}),
            inputs={k: paths for k, v in rest.items() if (paths := _paths(v))},
            outputs={name: arguments[name].path for name in outputs},
            parameters=parameters,
        )
    if METRICS in arguments:
        variant = {k: v for k, v in parameters.items() if k in ("seed", "weight_norm")}
        _write_metrics(arguments[METRICS], result, variant)
    return result


def _paths(value: Any) -> str | list[str] | None:
    """Of an artifact or of several; None for what is neither."""
    if isinstance(value, list):
        return [item.path for item in value if hasattr(item, "path")]
    return value.path if hasattr(value, "path") else None


def _write_metrics(metrics: Any, result: Mapping[str, Any], variant: Mapping[str, str]) -> None:
    """The numbers of the result, under the variant's name where a loop makes several."""
    numbers = {k: v for k, v in result.items() if isinstance(v, int | float)}
    metrics.metadata.update(numbers)
    if variant:
        metrics.metadata["display_name"] = " ".join(f"{k}={v}" for k, v in sorted(variant.items()))
    # Without a file the step would never be a cache hit.
    Path(metrics.path).write_text(json.dumps(numbers), encoding="utf-8")

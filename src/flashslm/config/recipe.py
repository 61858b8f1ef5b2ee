"""RunConfig: what a recipe may say; an unknown key is an error. `config.file` reads and writes it.

Only the standard library and pydantic are imported here, so that every part of the project can take a recipe.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

from pydantic import Field, PrivateAttr, ValidationError, model_validator

from flashslm.config import design
from flashslm.config.operator_sizes import sizes_to_measure
from flashslm.config.platform_section import PlatformConfig
from flashslm.config.problems import describe
from flashslm.config.retraining import RetrainingConfig
from flashslm.config.section import DNS_LABEL, Section, Seed
from flashslm.config.steps import STEP_SECTIONS
from flashslm.config.training import EXECUTION_SETTINGS, EvaluationConfig, ExportConfig, GateConfig, TrainingConfig


class RunConfig(Section):
    """A whole recipe."""

    name: str = Field(pattern=DNS_LABEL, description="The recipe's name; runs are named after it.")
    seed: Seed = Field(default=0, description="Of the text's order, the law, the search and the needles.")
    data: design.DataConfig = design.DataConfig()
    model: design.ModelConfig = design.ModelConfig()
    kernels: design.KernelsConfig = design.KernelsConfig()
    profiling: design.ProfilingConfig = design.ProfilingConfig()
    latency: design.LatencyConfig = design.LatencyConfig()
    scaling: design.ScalingConfig = design.ScalingConfig()
    search: design.SearchConfig = design.SearchConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    gate: GateConfig = GateConfig()
    retraining: RetrainingConfig = RetrainingConfig()
    platform: PlatformConfig = PlatformConfig()

    @model_validator(mode="before")
    @classmethod
    def _evaluation_sets_are_kept_out_of_the_text(cls, sections: Any) -> Any:
        """What the recipe's tasks ask must not be what the model was trained on."""
        given = sections if isinstance(sections, Mapping) else {}
        evaluation, data = given.get("evaluation"), given.get("data", {} if cls is RunConfig else None)
        if not isinstance(evaluation, Mapping) or not isinstance(data, Mapping):
            return sections
        sets, named = evaluation.get("task_data"), data.get("decontaminate_against") or ()
        if not evaluation.get("lm_eval_tasks") or not sets or not isinstance(named, list | tuple) or sets in named:
            return sections
        return {**given, "data": {**data, "decontaminate_against": [*named, sets]}}

    @model_validator(mode="before")
    @classmethod
    def _table_has_the_sizes_of_the_search(cls, sections: Any) -> Any:
        """The step that measures does not read the search section: its own one names all that it measures."""
        given = sections if cls is RunConfig and isinstance(sections, Mapping) else {}
        profiling = given.get("profiling", {})
        sizes = sizes_to_measure(given.get("search", {}), profiling)
        return {**given, "profiling": {**profiling, "sizes": sizes}} if sizes else sections

    def for_step(self, step: str) -> str:
        """The sections a step reads, as canonical JSON: the step's configuration and part of its cache key."""
        return json.dumps(self.model_dump(mode="json", include=set(STEP_SECTIONS[step])), sort_keys=True)

    def work_of(self, step: str) -> str:
        """`for_step` without what says how training is executed: equal where a step's interrupted work can go on."""
        sections: dict[str, Any] = json.loads(self.for_step(step))
        if training := sections.get("training"):
            sections["training"] = {k: v for k, v in training.items() if k not in EXECUTION_SETTINGS}
            for stage in training["stages"]:
                stage.pop("micro_batch_size")
        return json.dumps(sections, sort_keys=True)

    def as_parameters(self) -> dict[str, Any]:
        """The pipeline's parameters of the same names: each section with what differs from the defaults.

        The platform is part of the definition, and the number of search workers is the length of `workers`,
        that of the tasks that prepare data the length of `data_workers`.
        """
        values = self.model_dump(mode="json", exclude={"platform"}, exclude_defaults=True)
        sections = {name: values.get(name, {}) for name in RunConfig.model_fields if name not in NOT_PARAMETERS}
        sections["search"].pop("workers", None)
        return sections | {
            "name": self.name,
            "seed": self.seed,
            "workers": [str(i) for i in range(self.search.workers)],
            "data_workers": [str(i) for i in range(self.data.workers)],
        }

    def variants(self) -> list[dict[str, str]]:
        """Every pretraining run of the recipe as strings (ints in lists reach a KFP task as floats)."""
        return [{"weight_norm": w, "seed": str(s)} for w in self.training.weight_norm for s in self.training.seeds]


NOT_PARAMETERS = {"platform", "name", "seed"}  # of the kind that is a mapping


class UndeclaredSection(LookupError):
    """A step reads a section of the recipe that is not part of its cache key."""


class StepConfig(RunConfig):
    """The part of a recipe that a step declares. Reading another section raises UndeclaredSection: the step would see
    the section's defaults whatever the recipe says.
    """

    name: str = Field(default="", description="The recipe's name, for the steps that declare it.")
    _step: str = PrivateAttr("")

    def __getattribute__(self, name: str) -> Any:
        if name in RunConfig.model_fields and name not in self.model_fields_set:
            declared = ", ".join(sorted(self.model_fields_set))
            raise UndeclaredSection(
                f"step '{self._step}' reads '{name}' of the recipe but declares only {declared}: add '{name}' to its "
                "sections in config/steps.py"
            )
        return super().__getattribute__(name)

    def for_step(self, step: str) -> str:
        for section in STEP_SECTIONS[step]:
            getattr(self, section)
        return super().for_step(step)


def from_step_json(step: str, text: str) -> StepConfig:
    """Read the sections of a step, whole as `RunConfig.for_step(step)` writes them or with what differs from the
    defaults. Raises ValueError where it holds other sections than `step` reads, and names each field that is wrong.
    """
    values, declared = json.loads(text), set(STEP_SECTIONS[step])
    if set(values) != declared:
        raise ValueError(
            f"the configuration of step '{step}' has the sections {', '.join(sorted(values)) or 'none'}: it must have "
            f"{', '.join(sorted(declared))}, as RunConfig.for_step('{step}') writes them"
        )
    try:
        config = StepConfig.model_validate(values)
    except ValidationError as error:
        found = [describe(e, StepConfig) for e in error.errors(include_url=False, include_context=False)]
        raise ValueError("the recipe cannot be used: " + "; ".join(found)) from None
    config._step = step
    return config


def digest(value: Any) -> str:
    """A sha256 over a value's canonical JSON: the identity of configurations, architectures and runs.

    Raises TypeError for a value that JSON cannot hold as it is, such as a path, a set or a NaN: its text may differ
    between two processes, or be that of another value.
    """
    _refuse_unstable(value, "value")
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _refuse_unstable(value: Any, where: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where} has the key {key!r} ({type(key).__name__}): a digest takes text as keys")
            _refuse_unstable(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _refuse_unstable(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))):
        raise TypeError(
            f"{where} is {value!r} ({type(value).__name__}), which has no stable identity: a digest takes text, finite "
            "numbers, booleans, null, and lists and mappings of these"
        )

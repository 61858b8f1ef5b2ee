"""RunConfig: what a recipe may say; an unknown key is an error. `config.file` reads and writes it.

Only the standard library and pydantic are imported here, so that every part of the project can take a recipe.
"""

import hashlib
import json
from typing import Any

from pydantic import Field

from flashslm.config.cluster import PlatformConfig
from flashslm.config.design import (
    DataConfig,
    KernelsConfig,
    LatencyConfig,
    ModelConfig,
    ProfilingConfig,
    ScalingConfig,
    SearchConfig,
)
from flashslm.config.retraining import RetrainingConfig
from flashslm.config.section import DNS_LABEL, Section
from flashslm.config.steps import STEP_SECTIONS
from flashslm.config.training import EvaluationConfig, ExportConfig, GateConfig, TrainingConfig


class RunConfig(Section):
    """A whole recipe."""

    name: str = Field(pattern=DNS_LABEL)
    seed: int = Field(default=0, ge=0)
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    kernels: KernelsConfig = KernelsConfig()
    profiling: ProfilingConfig = ProfilingConfig()
    latency: LatencyConfig = LatencyConfig()
    scaling: ScalingConfig = ScalingConfig()
    search: SearchConfig = SearchConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    export: ExportConfig = ExportConfig()
    gate: GateConfig = GateConfig()
    retraining: RetrainingConfig = RetrainingConfig()
    platform: PlatformConfig = PlatformConfig()

    def for_step(self, step: str) -> str:
        """The sections a step reads, as canonical JSON: the step's configuration and part of its cache key."""
        values = self.model_dump(mode="json", include=set(STEP_SECTIONS[step]))
        return json.dumps({"name": self.name} | values if "name" in STEP_SECTIONS[step] else values, sort_keys=True)

    def variants(self) -> list[dict[str, str]]:
        """Every pretraining run of the recipe as strings (ints in lists reach a KFP task as floats)."""
        return [{"weight_norm": w, "seed": str(s)} for w in self.training.weight_norm for s in self.training.seeds]


def from_step_json(text: str) -> RunConfig:
    """Read what `RunConfig.for_step` wrote; sections the step does not read are at their defaults."""
    return RunConfig.model_validate({"name": "step"} | json.loads(text))


def digest(value: Any) -> str:
    """A sha256 over a value's canonical JSON: the identity of configurations, architectures and runs."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()

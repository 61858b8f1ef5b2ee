"""What a recipe may say: `recipe` puts the sections together, the other modules hold them."""

from flashslm.config.cluster import (
    GpuStepResources,
    GpuType,
    PlatformConfig,
    StepOverride,
    StepResources,
    Toleration,
)
from flashslm.config.design import (
    DataConfig,
    KernelsConfig,
    LatencyConfig,
    ModelConfig,
    ProfilingConfig,
    ScalingConfig,
    SearchConfig,
)
from flashslm.config.recipe import RunConfig, digest, from_step_json
from flashslm.config.section import Section
from flashslm.config.steps import GPU_STEPS, STEP_SECTIONS
from flashslm.config.training import EvaluationConfig, ExportConfig, GateConfig, TrainingConfig

__all__ = [
    "GPU_STEPS",
    "STEP_SECTIONS",
    "DataConfig",
    "EvaluationConfig",
    "ExportConfig",
    "GateConfig",
    "GpuStepResources",
    "GpuType",
    "KernelsConfig",
    "LatencyConfig",
    "ModelConfig",
    "PlatformConfig",
    "ProfilingConfig",
    "RunConfig",
    "ScalingConfig",
    "SearchConfig",
    "Section",
    "StepOverride",
    "StepResources",
    "Toleration",
    "TrainingConfig",
    "digest",
    "from_step_json",
]

"""What a recipe may say: `recipe` puts the sections together, the other modules hold them."""

from flashslm.config.design import (
    DataConfig,
    KernelsConfig,
    LatencyConfig,
    ModelConfig,
    OutputInit,
    ProfilingConfig,
    ScalingConfig,
    SearchConfig,
    WeightFormat,
)
from flashslm.config.operator_sizes import OWN_SIZES, OperatorSizes, SizeChoice, sizes_in_words
from flashslm.config.platform_section import (
    GpuStepResources,
    GpuType,
    PlatformConfig,
    StepOverride,
    StepResources,
    Toleration,
)
from flashslm.config.recipe import RunConfig, StepConfig, UndeclaredSection, digest, from_step_json
from flashslm.config.retraining import HOOK_URL_VARIABLE, PromotionHook, RetrainingConfig
from flashslm.config.section import Section
from flashslm.config.steps import DESIGN_STEPS, GPU_STEPS, MULTI_NODE_STEPS, STEP_SECTIONS, section_parameter
from flashslm.config.training import (
    BatchShape,
    EvaluationConfig,
    ExportConfig,
    GateConfig,
    TrainingConfig,
    TrainingStage,
)

__all__ = [
    "DESIGN_STEPS",
    "GPU_STEPS",
    "HOOK_URL_VARIABLE",
    "MULTI_NODE_STEPS",
    "OWN_SIZES",
    "STEP_SECTIONS",
    "BatchShape",
    "DataConfig",
    "EvaluationConfig",
    "ExportConfig",
    "GateConfig",
    "GpuStepResources",
    "GpuType",
    "KernelsConfig",
    "LatencyConfig",
    "ModelConfig",
    "OperatorSizes",
    "OutputInit",
    "PlatformConfig",
    "ProfilingConfig",
    "PromotionHook",
    "RetrainingConfig",
    "RunConfig",
    "ScalingConfig",
    "SearchConfig",
    "Section",
    "SizeChoice",
    "StepConfig",
    "StepOverride",
    "StepResources",
    "Toleration",
    "TrainingConfig",
    "TrainingStage",
    "UndeclaredSection",
    "WeightFormat",
    "digest",
    "from_step_json",
    "section_parameter",
    "sizes_in_words",
]

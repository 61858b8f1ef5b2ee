"""Sections that say how a model is trained, measured, exported and promoted."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from flashslm.config.retraining import PromotionHook
from flashslm.config.section import Distinct, Section, Seed


def _switch(value: Any) -> Any:
    """YAML 1.1 reads a bare on or off as a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


MODEL_NAME = r"^\w([\w. -]{0,126}\w)?$"  # MLflow takes no slash and no colon, its searches no quotation mark

Switch = Annotated[Literal["on", "off"], BeforeValidator(_switch)]


class TrainingConfig(Section):
    """Pretraining and its ablation: every value of weight_norm x every seed is one run."""

    steps: int = Field(default=10_000, ge=1)
    batch_size: int = Field(default=64, ge=1)  # sequences per optimizer step
    micro_batch_size: int = Field(default=0, ge=0)  # 0 = batch_size (no gradient accumulation)
    sequence_length: int = Field(default=1024, ge=8)
    learning_rate: float = Field(default=1e-3, gt=0)
    min_learning_rate_ratio: float = Field(default=0.1, ge=0, le=1)
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.0, ge=0)
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.95, ge=0, lt=1)
    gradient_clip: float = Field(default=1.0, gt=0)
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    # Bit-exact resume needs deterministic algorithms; auto: on for a CPU, off on CUDA, where they cost time.
    deterministic: Literal["auto"] | Switch = "auto"
    threads: int = Field(default=1, ge=1)  # CPU only
    processes: int = Field(default=0, ge=0)  # that pretrain together on each node; 0 = one per GPU, one on a CPU
    weight_norm: Distinct[Switch] = ("on", "off")
    seeds: Distinct[Seed] = (0,)
    deploy: Literal["best", "on", "off"] = "best"  # which variant is evaluated and exported
    deploy_seed: Seed | None = None  # which of its seeds; null = the first of `seeds`
    isolate_documents: bool = False  # attention, convolution and states start again at a document's first token
    validation_batches: int = Field(default=16, ge=1)
    validate_every_steps: int = Field(default=500, ge=1)
    checkpoint_every_steps: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every_steps: int = Field(default=10, ge=1)

    def is_deterministic(self, device_type: str) -> bool:
        """Whether deterministic algorithms run on a device of this type."""
        return device_type == "cpu" if self.deterministic == "auto" else self.deterministic == "on"

    @property
    def deployed_seed(self) -> int:
        """The seed of the run that is evaluated and exported."""
        return self.seeds[0] if self.deploy_seed is None else self.deploy_seed

    @model_validator(mode="after")
    def _variants_are_usable(self) -> "TrainingConfig":
        if not self.weight_norm or not self.seeds:
            raise ValueError("weight_norm and seeds each need at least one value")
        if self.deploy != "best" and self.deploy not in self.weight_norm:
            raise ValueError(f"deploy is '{self.deploy}': allowed are 'best' and the values of weight_norm")
        if self.deploy_seed is not None and self.deploy_seed not in self.seeds:
            raise ValueError(f"deploy_seed is {self.deploy_seed}: allowed are the values of seeds, {list(self.seeds)}")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class EvaluationConfig(Section):
    """What is measured on the chosen checkpoint."""

    sequence_length: int = Field(default=1024, ge=8)
    batch_size: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=0, ge=0)  # 0 = the whole validation split
    needle_lengths: Distinct[Annotated[int, Field(ge=18)]] = (1024, 4096)  # key, value and some text
    needle_samples: int = Field(default=32, ge=1)
    lm_eval_tasks: Distinct[str] = ()
    lm_eval_limit: int = Field(default=0, ge=0)  # documents a task; 0 = all


class ExportConfig(Section):
    """What the exported directory holds."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_shard_bytes: int = Field(default=5_000_000_000, ge=1_000_000)
    parity_tokens: int = Field(default=128, ge=8)
    parity_tolerance: float = Field(default=1e-4, gt=0)


class GateConfig(Section):
    """When a model may become champion. A limit of 0 means no limit."""

    model_name: str = Field(default="flashslm", pattern=MODEL_NAME)  # in MLflow's registry
    max_perplexity: float = Field(default=0.0, ge=0)
    max_latency_ms: float = Field(default=0.0, ge=0)
    max_parameters: int = Field(default=0, ge=0)
    min_perplexity_gain: float = Field(default=0.0, ge=0)  # relative gain a challenger must show over the champion
    max_latency_increase: float = Field(default=0.1, ge=0)  # relative to the champion, same device
    max_size_increase: float = Field(default=0.1, ge=0)  # parameters, relative to the champion
    max_perplexity_increase: float = Field(
        default=0.01, ge=0
    )  # retraining, relative, on data the champion was judged on
    max_accuracy_drop: float = Field(default=0.02, ge=0, le=1)  # retraining, absolute, on needles and tasks
    promotion_hook: PromotionHook = PromotionHook()

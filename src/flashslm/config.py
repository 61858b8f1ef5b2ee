"""RunConfig: what a recipe may say; an unknown key is an error. `config_file` reads and writes it.

Only the standard library and pydantic are imported here, so that every part of the project can take a recipe.
"""

import hashlib
import json
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

# Which sections of the recipe a step reads. A step is given these and no others, so a change elsewhere in the recipe
# leaves its cache entry valid.
STEP_SECTIONS: dict[str, tuple[str, ...]] = {
    "prepare_data": ("seed", "data"),
    "profile_latency": ("model", "kernels", "profiling"),
    "fit_scaling_law": ("seed", "model", "kernels", "profiling", "latency", "scaling"),
    "search_architecture": ("seed", "model", "kernels", "profiling", "latency", "scaling", "search"),
    "select_architecture": ("seed", "model", "kernels", "profiling", "latency", "scaling", "search"),
    "pretrain": ("model", "kernels", "training"),
    "compare_weight_norm": ("training",),
    "evaluate": ("seed", "kernels", "training", "evaluation"),
    "export_model": ("kernels", "profiling", "latency", "export"),
    "gate": ("gate",),
    "register_model": ("name", "gate"),
    "report": ("name", "gate"),
}

GPU_STEPS = {"profile_latency", "fit_scaling_law", "search_architecture", "pretrain", "evaluate", "export_model"}
_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$"


def _switch(value: Any) -> Any:
    """YAML 1.1 reads a bare on or off as a boolean."""
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else value


def _quantity(value: Any) -> Any:
    """YAML reads a bare 8 as a number."""
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


Positive = Annotated[int, Field(ge=1)]
Cpu = Annotated[str, BeforeValidator(_quantity), Field(pattern=r"^([1-9][0-9]*(\.[0-9]+)?|0?\.[0-9]+|[1-9][0-9]*m)$")]
Memory = Annotated[str, Field(pattern=r"^[1-9][0-9]*(\.[0-9]+)?([KMGTPE]i?|k)?$")]
Switch = Annotated[Literal["on", "off"], BeforeValidator(_switch)]


class Section(BaseModel):
    """Base of every section: frozen, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(Section):
    """Where text comes from and how it becomes token shards."""

    source: Literal["python-stdlib", "files", "huggingface"] = "python-stdlib"
    paths: tuple[str, ...] = ()  # source=files: local or s3://, globs allowed; .parquet .jsonl .jsonl.zst .txt .py .md
    text_field: str = "text"
    dataset: str = ""  # source=huggingface: hub id
    dataset_config: str = ""
    dataset_split: str = "train"
    max_bytes: int = Field(default=0, ge=0)  # 0 = all of it
    validation_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    tokenizer: str = "train"  # "train" = byte-level BPE on this text; else a directory or a hub id
    vocab_size: int = Field(default=4096, ge=258)  # tokenizer=train only
    tokenizer_bytes: int = Field(default=4_000_000, ge=10_000)  # text the BPE is trained on
    shard_tokens: int = Field(default=16_777_216, ge=1024)

    @model_validator(mode="after")
    def _source_has_its_fields(self) -> "DataConfig":
        if self.source == "files" and not self.paths:
            raise ValueError("source 'files' needs paths: a list of local or s3:// files or globs")
        if self.source == "huggingface" and not self.dataset:
            raise ValueError("source 'huggingface' needs dataset: a hub id such as 'HuggingFaceFW/fineweb-edu'")
        return self


class ModelConfig(Section):
    """Sizes every architecture of a run shares; widths are searched, order and repeats too."""

    head_dim: int = Field(default=64, ge=4, le=256)  # attention and DeltaNet
    kv_group: int = Field(default=4, ge=1)  # query heads per key/value head (as far as the head count divides)
    ffn_ratio: float = Field(default=3.0, gt=0)
    mamba_state: int = Field(default=128, ge=4)
    mamba_head_dim: int = Field(default=64, ge=4)
    mamba_expand: int = Field(default=2, ge=1)
    num_meta_tokens: int = Field(default=256, ge=0)
    max_position_embeddings: int = Field(default=33_024, ge=64)
    rope_theta: float = Field(default=10_000.0, gt=0)
    norm_eps: float = Field(default=1e-6, gt=0)
    qk_norm: bool = False  # RMSNorm over each head of attention's q and k
    window: int = Field(default=512, ge=1)  # keys that a query of window attention (W) sees


class KernelsConfig(Section):
    """Which form of each operation runs; the choice is logged and recorded with the run.

    auto is torch's form on a CPU and the fused one on CUDA; a fused form that is not installed is an error that names
    the other one. In fp32 attention, the delta rules, GLA and decoding take torch's form: those kernels are half
    precision only.
    """

    delta_rule: Literal["auto", "chunked", "fla"] = "auto"
    gated_delta_rule: Literal["auto", "chunked", "fla"] = "auto"
    gla: Literal["auto", "chunked", "fla"] = "auto"
    ssd: Literal["auto", "chunked", "mamba-ssm"] = "auto"
    causal_conv: Literal["auto", "shifted", "fla"] = "auto"
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    cross_entropy: Literal["auto", "chunked", "triton"] = "auto"
    decode: Literal["auto", "torch", "triton"] = "auto"  # the decode step: triton is inference/fused


class ProfilingConfig(Section):
    """What the latency table measures, on the present device, with the engine that ships."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 on CPU
    threads: int = Field(default=1, ge=1)  # CPU only
    compile_processes: int = Field(default=4, ge=0)  # CUDA only: they compile a table's kernels before it is measured
    operators: str = Field(default="DMAF", pattern=r"^[ADFGLMW]+$")  # letters; D, M, A and F are always among them
    widths: tuple[int, ...] = (1024, 1280, 1536, 1792, 2048, 2304, 2560)
    contexts: tuple[int, ...] = (1024, 8192)
    batches: tuple[int, ...] = (1,)
    warmup: int = Field(default=3, ge=0)
    repeats: int = Field(default=20, ge=3)
    sweep_block: str = "DFMF"
    sweep_depths: tuple[int, ...] = (6, 12, 18, 24, 30)  # blocks, whole models at matched parameters
    sweep_parameters: tuple[int, ...] = (300_000_000, 500_000_000, 1_000_000_000)
    calibration_models: int = Field(default=0, ge=0)  # whole models a batch that a step's overhead is fitted on
    check_models: int = Field(default=8, ge=1)  # random whole models the table's prediction is compared with

    @model_validator(mode="after")
    def _operators_are_those_of_the_search(self) -> "ProfilingConfig":
        if not set("DMAF") <= set(self.operators) or len(set(self.operators)) < len(self.operators):
            raise ValueError(f"operators is '{self.operators}': each letter once, and D, M, A and F among them")
        return self

    @model_validator(mode="after")
    def _grids_not_empty(self) -> "ProfilingConfig":
        for name in ("widths", "contexts", "batches", "sweep_depths", "sweep_parameters"):
            values = getattr(self, name)
            if not values or min(values) < 1:
                raise ValueError(f"{name} is {list(values)}: give at least one positive integer")
        return self


class LatencyConfig(Section):
    """The latency budget per decoded token, absolute or relative to a reference architecture on the same device."""

    context: int = Field(default=8192, ge=1)
    batch: int = Field(default=1, ge=1)
    target_ms: float = Field(default=0.0, ge=0)  # 0 = use the reference below
    reference_operators: str = "DFMF AFMF DFMF AFMF DFMF DFMF"
    reference_width: int = Field(default=2048, ge=8)
    reference_factor: float = Field(default=1.0, gt=0)


class ScalingConfig(Section):
    """The small (depth, width) family of the law L0 + a·D^-alpha + b·W^-beta + c·N^-gamma."""

    block: str = "DFMF"  # the block whose repeats make the depth
    depths: tuple[Positive, ...] = Field(default=(6, 12, 18), min_length=1)
    widths: tuple[Positive, ...] = Field(default=(512, 768, 1024), min_length=1)
    holdout_depth: int = Field(default=24, ge=1)
    holdout_width: int = Field(default=1536, ge=8)
    checkpoints: int = Field(default=4, ge=2)  # points in N read off each run
    steps: int = Field(default=1000, ge=4)
    batch_size: int = Field(default=32, ge=1)
    sequence_length: int = Field(default=1024, ge=8)
    learning_rate: float = Field(default=1e-3, gt=0)
    bootstrap: int = Field(default=100, ge=10)
    choice_depths: tuple[Positive, ...] = Field(default=(6, 12, 18, 24, 30), min_length=1)


class SearchConfig(Section):
    """Aging evolution (Real et al. 2019) over three-stage architectures; the proxy is a short training run."""

    workers: int = Field(default=2, ge=1, le=64)
    trials: int = Field(default=200, ge=1)
    population: int = Field(default=32, ge=2)
    sample: int = Field(default=8, ge=1)
    candidates_per_cycle: int = Field(default=10, ge=1)
    max_operators: int = Field(default=30, ge=1)
    max_mixer_types: int = Field(default=2, ge=1, le=3)  # mixer types per block type
    seed_designs: tuple[str, ...] = ()  # known designs, one operator string each, stages separated by "|"
    widths: tuple[Positive, ...] = Field(default=(1024, 1280, 1536, 1792, 2048, 2304, 2560), min_length=1)
    steps: int = Field(default=500, ge=1)
    batch_size: int = Field(default=32, ge=1)
    sequence_length: int = Field(default=1024, ge=8)
    learning_rate: float = Field(default=5e-4, gt=0)
    validation_batches: int = Field(default=16, ge=1)

    @model_validator(mode="after")
    def _sample_fits_population(self) -> "SearchConfig":
        if self.sample > self.population:
            raise ValueError(f"sample is {self.sample}: at most population ({self.population})")
        return self


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
    threads: int = Field(default=1, ge=1)  # CPU only
    weight_norm: tuple[Switch, ...] = ("on", "off")
    seeds: tuple[int, ...] = (0,)
    deploy: Literal["best", "on", "off"] = "best"  # which variant goes on to evaluation and export
    isolate_documents: bool = False  # attention, convolution and states start afresh at a document's first token
    validation_batches: int = Field(default=16, ge=1)
    validate_every_steps: int = Field(default=500, ge=1)
    checkpoint_every_steps: int = Field(default=500, ge=1)
    keep_checkpoints: int = Field(default=2, ge=1)
    log_every_steps: int = Field(default=10, ge=1)

    @model_validator(mode="after")
    def _variants_are_usable(self) -> "TrainingConfig":
        if not self.weight_norm or not self.seeds:
            raise ValueError("weight_norm and seeds each need at least one value")
        if self.deploy != "best" and self.deploy not in self.weight_norm:
            raise ValueError(f"deploy is '{self.deploy}': allowed are 'best' and the values of weight_norm")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            raise ValueError(f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}")
        return self


class EvaluationConfig(Section):
    """What is measured on the chosen checkpoint."""

    sequence_length: int = Field(default=1024, ge=8)
    batch_size: int = Field(default=16, ge=1)
    max_tokens: int = Field(default=0, ge=0)  # 0 = the whole validation split
    needle_lengths: tuple[Annotated[int, Field(ge=18)], ...] = (1024, 4096)  # key, value and some text
    needle_samples: int = Field(default=32, ge=1)
    lm_eval_tasks: tuple[str, ...] = ()
    lm_eval_limit: int = Field(default=0, ge=0)  # documents a task; 0 = all


class ExportConfig(Section):
    """What the exported directory holds."""

    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_shard_bytes: int = Field(default=5_000_000_000, ge=1_000_000)
    parity_tokens: int = Field(default=128, ge=8)
    parity_tolerance: float = Field(default=1e-4, gt=0)


class GateConfig(Section):
    """When a model may become champion. A limit of 0 is no limit."""

    model_name: str = "flashslm"
    max_perplexity: float = Field(default=0.0, ge=0)
    max_latency_ms: float = Field(default=0.0, ge=0)
    max_parameters: int = Field(default=0, ge=0)
    min_perplexity_gain: float = Field(default=0.0, ge=0)  # relative gain a challenger must show over the champion
    max_latency_increase: float = Field(default=0.1, ge=0)  # relative to the champion, same device
    max_size_increase: float = Field(default=0.1, ge=0)  # parameters, relative to the champion


class Toleration(Section):
    """A taint that a pod may meet on its node."""

    key: str = ""
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str = ""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""


class GpuType(Section):
    """A kind of GPU node: the resource a pod asks for and the nodes it may use."""

    resource: str = "nvidia.com/gpu"
    node_selector: dict[str, str] = {}
    tolerations: tuple[Toleration, ...] = (Toleration(key="nvidia.com/gpu", effect="NoSchedule"),)


class StepResources(Section):
    """What a pod gets; requests equal limits, so that no neighbour slows a measurement down."""

    cpu: Cpu = "2"
    memory: Memory = "8Gi"
    gpus: int = Field(default=0, ge=0)
    gpu_type: str = ""  # a name in platform.gpu_types; "" = any node with nvidia.com/gpu
    shared_memory: Memory | Literal[""] = ""  # /dev/shm, counts against memory; "" = the engine's own (64Mi)
    timeout_s: int = Field(default=86_400, ge=60)  # of one attempt
    image: str = ""  # "" = platform.image


class GpuStepResources(StepResources):
    """The same with what a step of GPU_STEPS needs."""

    cpu: Cpu = "8"
    memory: Memory = "64Gi"
    gpus: int = Field(default=1, ge=0)
    shared_memory: Memory | Literal[""] = "16Gi"


class StepOverride(Section):
    """Where one step differs from the others of its kind; null = as they."""

    cpu: Cpu | None = None
    memory: Memory | None = None
    gpus: int | None = Field(default=None, ge=0)
    gpu_type: str | None = None
    shared_memory: Memory | Literal[""] | None = None
    timeout_s: int | None = Field(default=None, ge=60)
    image: str | None = None


class PlatformConfig(Section):
    """How steps run on a cluster and how often they are retried anywhere."""

    retries: int = Field(default=2, ge=0)
    namespace: str = Field(default="kubeflow", pattern=_DNS_LABEL)
    service_account: str = ""  # "" = the installation's own
    image: str = ""  # "" = the one in components/images.py; a digest (name@sha256:...) keeps caching honest
    image_pull_secret: str = ""
    cpu_steps: StepResources = StepResources()
    gpu_steps: GpuStepResources = GpuStepResources()
    steps: dict[str, StepOverride] = {}
    gpu_types: dict[str, GpuType] = {}
    # Names in the namespace; their keys are the variables of the environment contract. "" = none.
    config_map: str = "flashslm"
    s3_secret: str = "flashslm-s3"
    mlflow_secret: str = "flashslm-mlflow"
    database_secret: str = "flashslm-database"
    deadline_s: int = Field(default=0, ge=0)  # of a whole run; 0 = none
    ttl_s: int = Field(default=7 * 86_400, ge=0)  # pods and workflow go so long after a run's end; 0 = never
    cron_time_zone: str = "UTC"  # the installation's CRON_SCHEDULE_TIMEZONE

    @model_validator(mode="after")
    def _names_are_known(self) -> "PlatformConfig":
        unknown = sorted(set(self.steps) - set(STEP_SECTIONS))
        problems = [f"steps: {', '.join(unknown)} unknown; allowed: {', '.join(STEP_SECTIONS)}"] if unknown else []
        wanted = {self.cpu_steps.gpu_type, self.gpu_steps.gpu_type, *(o.gpu_type or "" for o in self.steps.values())}
        if unknown := sorted(wanted - {""} - set(self.gpu_types)):
            known = ", ".join(sorted(self.gpu_types)) or "none"
            problems.append(f"gpu_type: {', '.join(unknown)} not in gpu_types; there are: {known}")
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def resources(self, step: str) -> StepResources:
        """What `step` gets: that of its kind, with its own differences."""
        base = self.gpu_steps if step in GPU_STEPS else self.cpu_steps
        own = self.steps.get(step, StepOverride())
        return base.model_copy(update=own.model_dump(exclude_none=True))


class RunConfig(Section):
    """A whole recipe."""

    name: str = Field(pattern=_DNS_LABEL)
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

"""Sections that say what is designed: the data, the model family, its kernels, latency, scaling law and search."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flashslm.config.paths import LocalPath
from flashslm.config.section import Depth, Distinct, Positive, Section, Width
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, OPERATORS


class DataConfig(Section):
    """Where text comes from and how it becomes token shards."""

    source: Literal["python-stdlib", "files", "huggingface"] = "python-stdlib"
    paths: Annotated[
        tuple[str, ...], LocalPath()
    ] = ()  # source=files: local or s3://, globs allowed; .parquet .jsonl[.gz|.zst] .txt .py .md
    text_field: str = "text"
    dataset: Annotated[str, LocalPath(or_id=True)] = ""  # source=huggingface: hub id
    dataset_config: str = ""
    dataset_split: str = "train"
    dataset_revision: str = ""  # of the hub: a commit, tag or branch; "" = the newest when the step runs
    max_bytes: int = Field(default=0, ge=0)  # 0 = all of it
    validation_fraction: float = Field(default=0.05, gt=0, lt=0.5)
    tokenizer: Annotated[str, LocalPath(or_id=True)] = (
        "train"  # "train" = byte-level BPE on this text; else a directory or a hub id
    )
    tokenizer_revision: str = ""  # as dataset_revision, where the tokenizer is a hub id
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
    ffn_ratio: float = Field(default=3.0, gt=0, le=1024)
    mamba_state: int = Field(default=128, ge=4)
    mamba_head_dim: int = Field(default=64, ge=4)
    mamba_expand: int = Field(default=2, ge=1)
    num_meta_tokens: int = Field(default=256, ge=0)
    max_position_embeddings: int = Field(default=33_024, ge=64)
    rope_theta: float = Field(default=10_000.0, gt=0)
    rope_type: Literal["default", "ntk"] = "default"
    original_max_position_embeddings: int = Field(default=0, ge=0)  # rope_type=ntk
    norm_eps: float = Field(default=1e-6, gt=0)
    qk_norm: bool = False  # RMSNorm over each head of attention's q and k
    window: int = Field(default=512, ge=1)  # keys that a query of window attention (W) sees


class KernelsConfig(Section):
    """Which form of each operation runs; the choice is logged and recorded with the run.

    auto is torch's form on a CPU and the fused one on CUDA; a fused form that is not installed is an error that names
    the other one. In fp32 attention, the delta rules, GLA and decoding take torch's form: those kernels are half
    precision only. mamba-ssm's products of fp32 tensors have tf32's accuracy.
    """

    default: Literal["auto", "torch"] = "auto"  # torch: what auto means below is torch's form on every device
    delta_rule: Literal["auto", "chunked", "fla"] = "auto"
    gated_delta_rule: Literal["auto", "chunked", "fla"] = "auto"
    gla: Literal["auto", "chunked", "fla"] = "auto"
    ssd: Literal["auto", "chunked", "mamba-ssm"] = "auto"
    causal_conv: Literal["auto", "shifted", "triton"] = "auto"
    rotary: Literal["auto", "torch", "triton"] = "auto"  # with the norms of attention's heads
    attention: Literal["auto", "sdpa", "flash"] = "auto"
    cross_entropy: Literal["auto", "chunked", "triton"] = "auto"
    elementwise: Literal["auto", "torch", "inductor"] = "auto"  # norms, gates, rotations of a model that trains
    decode: Literal["auto", "torch", "fused"] = "auto"  # the decode step: fused is inference/fused


class ProfilingConfig(Section):
    """What the latency table measures, on the present device, with the engine that ships."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # auto: bfloat16 on CUDA, float32 on CPU
    threads: int = Field(default=1, ge=1)  # CPU only
    compile_processes: int = Field(default=4, ge=0)  # CUDA only: they compile a table's kernels before it is measured
    # Letters; the exportable ones, which the search uses, are always among them.
    operators: str = Field(default=EXPORTABLE_OPERATORS, pattern=rf"^[{OPERATORS}]+$")
    widths: Distinct[Width] = Field(default=(1024, 1280, 1536, 1792, 2048, 2304, 2560), min_length=1)
    contexts: Distinct[Positive] = Field(default=(1024, 8192), min_length=1)
    batches: Distinct[Positive] = Field(default=(1,), min_length=1)
    warmup: int = Field(default=3, ge=0)
    repeats: int = Field(default=20, ge=3)
    sweep_block: str = "DFMF"
    sweep_depths: Distinct[Depth] = Field(default=(6, 12, 18, 24, 30), min_length=1)  # of models of equal parameters
    sweep_parameters: Distinct[Positive] = Field(default=(300_000_000, 500_000_000, 1_000_000_000), min_length=1)
    calibration_models: int = Field(default=0, ge=0)  # whole models per batch that a step's overhead is fitted on
    check_models: int = Field(default=8, ge=1)  # random whole models the table's prediction is compared with

    @model_validator(mode="after")
    def _operators_are_those_of_the_search(self) -> "ProfilingConfig":
        required = set(EXPORTABLE_OPERATORS)
        if not required <= set(self.operators) or len(set(self.operators)) < len(self.operators):
            *most, last = list(EXPORTABLE_OPERATORS)
            raise ValueError(
                f"operators is '{self.operators}': each letter once, and {', '.join(most)} and {last} among them"
            )
        return self


class LatencyConfig(Section):
    """The latency budget per decoded token, absolute or relative to a reference architecture on the same device."""

    context: int = Field(default=8192, ge=1)
    batch: int = Field(default=1, ge=1)
    target_ms: float = Field(default=0.0, ge=0)  # 0 = use the reference below
    reference_operators: str = "DFMF AFMF DFMF AFMF DFMF DFMF"
    reference_width: int = Field(default=2048, ge=8, le=65_536)
    reference_factor: float = Field(default=1.0, gt=0)


class ScalingConfig(Section):
    """The small (depth, width) family of the law L0 + a·D^-alpha + b·W^-beta + c·N^-gamma."""

    block: str = "DFMF"  # the block whose repeats make the depth
    depths: Distinct[Depth] = Field(default=(6, 12, 18), min_length=1)
    widths: Distinct[Width] = Field(default=(512, 768, 1024), min_length=1)
    holdout_depth: Depth = 24
    holdout_width: int = Field(default=1536, ge=8, le=65_536)
    checkpoints: int = Field(default=4, ge=2, le=1000)  # points in N read off each run
    steps: int = Field(default=1000, ge=4)
    batch_size: int = Field(default=32, ge=1)
    sequence_length: int = Field(default=1024, ge=8)
    learning_rate: float = Field(default=1e-3, gt=0)
    bootstrap: int = Field(default=100, ge=10)
    choice_depths: Distinct[Depth] = Field(default=(6, 12, 18, 24, 30), min_length=1)


class SearchConfig(Section):
    """Aging evolution (Real et al. 2019) over three-stage architectures; the proxy is a short training run."""

    workers: int = Field(default=2, ge=1, le=64)
    trials: int = Field(default=200, ge=1)
    population: int = Field(default=32, ge=2)
    sample: int = Field(default=8, ge=1)
    candidates_per_cycle: int = Field(default=10, ge=1)
    max_operators: int = Field(default=30, ge=1, le=1024)
    max_mixer_types: int = Field(default=2, ge=1, le=3)  # mixer types per block type
    seed_designs: Distinct[str] = ()  # known designs, one operator string each, stages separated by "|"
    widths: Distinct[Width] = Field(default=(1024, 1280, 1536, 1792, 2048, 2304, 2560), min_length=1)
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

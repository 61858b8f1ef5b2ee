"""Sections that say how a model is trained, measured, exported and promoted."""

from itertools import pairwise
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, model_validator

from flashslm.config.mixture import Mixture
from flashslm.config.paths import LocalPath
from flashslm.config.retraining import PromotionHook
from flashslm.config.section import Distinct, Factor, Section, Seed, Switch
from flashslm.models.operator_spec import EMBEDDING, OPERATOR_SPECS, usual_axes

MODEL_NAME = r"^\w([\w. -]{0,126}\w)?$"  # MLflow takes no slash and no colon, its searches no quotation mark

WeightAxis = Literal["rows", "columns", "heads", "none"]

# Of TrainingConfig: where and in which portions a run is computed, what is kept of it on the way, and which runs there
# are beside it. With other values the same run goes on (RunConfig.work_of): its numbers differ by rounding alone.
EXECUTION_SETTINGS = {
    *("threads", "processes", "shard_processes", "gradient_sync", "micro_batch_size", "micro_batch_per_process"),
    *("activation_checkpointing", "cuda_graph", "max_skipped_steps", "checkpoint_every_steps", "keep_checkpoints"),
    *("weight_norm", "seeds", "deploy", "deploy_seed"),
}


class BatchShape(NamedTuple):
    """What a step from `first_step` (counted from 0) on is made of, until the next shape begins."""

    first_step: int
    sequence_length: int
    batch_size: int
    micro_batch_size: int  # divides batch_size

    @property
    def tokens(self) -> int:
        """Of one optimizer step."""
        return self.batch_size * self.sequence_length


class TrainingStage(Section):
    """What changes in mid-run, such as a longer context near the end; null leaves a value as it was before."""

    from_step: int = Field(ge=1, description="Steps that are done before the stage begins.")
    sequence_length: int | None = Field(default=None, ge=8, description="Tokens per sequence from there on.")
    batch_size: int | None = Field(default=None, ge=1, description="Sequences per optimizer step from there on.")
    micro_batch_size: int | None = Field(default=None, ge=0, description="Sequences per pass; 0: batch_size.")


class TrainingConfig(Section):
    """Pretraining and its ablation: every value of weight_norm x every seed is one run."""

    steps: int = Field(default=10_000, ge=1, description="Optimizer steps of each run.")
    batch_size: int = Field(default=64, ge=1, description="Sequences per optimizer step, over all processes.")
    micro_batch_size: int = Field(
        default=0,
        ge=0,
        description="Sequences that pass through the model together; 0: batch_size, no gradient accumulation.",
    )
    sequence_length: int = Field(default=1024, ge=8, description="Tokens per sequence.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate of AdamW.")
    min_learning_rate_ratio: float = Field(
        default=0.1, ge=0, le=1, description="The last step's learning rate over the peak."
    )
    warmup_steps: int = Field(default=100, ge=0, description="Steps of linear warm-up, before any schedule.")
    schedule: Literal["cosine", "warmup_stable_decay"] = Field(
        default="cosine",
        description="After the warm-up: a cosine to the last step, or the peak until `decay_steps` before it.",
    )
    decay_steps: int = Field(
        default=0, ge=0, description="schedule 'warmup_stable_decay': last steps, in which the rate falls."
    )
    stages: tuple[TrainingStage, ...] = Field(
        default=(), description="Changes of length and batch in mid-run, in the order of their steps."
    )
    mixture: Mixture = Field(
        default=(),
        description="Data sets that are trained on together, by weight; empty: this run's alone. Validation, test and "
        "the proxies of search and scaling law have this run's.",
    )
    weight_decay: float = Field(default=0.0, ge=0, description="AdamW's decoupled weight decay.")
    beta1: float = Field(default=0.9, ge=0, lt=1, description="AdamW's decay of the first moment.")
    beta2: float = Field(default=0.95, ge=0, lt=1, description="AdamW's decay of the second moment.")
    gradient_clip: float = Field(default=1.0, gt=0, description="Largest norm of the whole gradient.")
    max_skipped_steps: int = Field(
        default=20,
        ge=0,
        description="Steps that may be skipped because their gradient is not finite; one more ends the run.",
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of the forward and backward pass; auto: bfloat16 on CUDA, float32 on a CPU."
    )
    deterministic: Literal["auto"] | Switch = Field(
        default="auto",
        description="Deterministic algorithms, which a bit-exact resume needs; auto: on for a CPU, off on CUDA, where "
        "they cost time.",
    )
    threads: int = Field(default=1, ge=1, description="Threads of a process that trains on a CPU.")
    processes: int = Field(
        default=0, ge=0, description="Processes that pretrain together on each node; 0: one per GPU, one on a CPU."
    )
    micro_batch_per_process: bool = Field(
        default=False,
        description="micro_batch_size counts each process' own sequences, so that more processes need fewer passes; "
        "otherwise those of all processes together.",
    )
    shard_processes: int = Field(
        default=0,
        ge=0,
        description="Processes that hold one copy of weights and moments together: fewer than train leave several "
        "copies, which send each other gradients alone; 0: all of them, 1: each process has its own copy.",
    )
    gather_dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="Of the weights that processes send each other for a layer; bfloat16 sends half as much where the "
        "precision is bfloat16, and rounds norms and decays too.",
    )
    gradient_sync: Literal["last", "each"] = Field(
        default="last",
        description="After which micro-batch of a step processes add up their gradients; before the last one each of "
        "them holds whole weights and gradients.",
    )
    activation_checkpointing: Switch = Field(
        default="off",
        description="Keep only the input of each layer and run the layer a second time for its gradient: less memory, "
        "about a third more work.",
    )
    cuda_graph: Literal["auto"] | Switch = Field(
        default="off",
        description="One process on a GPU: record a step once for its batch shape and replay it with a single launch; "
        "auto: where the host's launches take at least twice as long as the device (docs/training.md).",
    )
    weight_norm: Distinct[Switch] = Field(
        default=("on", "off"),
        description="Variants of the ablation: with weight normalisation after every step, and without.",
    )
    weight_norm_rate_factor: Factor = Field(
        default=1.0,
        exclude_if=lambda value: value == 1.0,
        description="Factor on learning_rate in runs with weight normalisation, in retraining too (docs/training.md).",
    )
    weight_norm_axes: dict[str, WeightAxis] = Field(
        default={},
        description="Which vectors of a kind of weight matrix ('A.q_proj': operator and layer; 'embedding') have unit "
        "norm, where not the usual ones (rows of what reads the residual stream, columns of what writes to it): rows, "
        "columns, heads (a vector of each head, along its own channels), or none.",
    )
    seeds: Distinct[Seed] = Field(default=(0,), description="Every variant is trained once for each seed.")
    deploy: Literal["best", "on", "off"] = Field(
        default="best",
        description="The variant that is evaluated and exported; best: that of the lowest validation loss.",
    )
    deploy_seed: Seed | None = Field(
        default=None, description="Which of that variant's seeds; null: the first of `seeds`."
    )
    isolate_documents: bool = Field(
        default=False, description="Attention, convolutions and states start again at a document's first token."
    )
    validation_tokens: int = Field(
        default=1_048_576,
        ge=1,
        description="Tokens per validation: a fixed sample of the split, the same for every micro-batch and seed.",
    )
    validate_every_steps: int = Field(
        default=500, ge=1, description="Steps between validations; the last step has one too."
    )
    checkpoint_every_steps: int = Field(
        default=500, ge=1, description="Steps between checkpoints that a retry resumes from."
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="Newest checkpoints that are kept during training.")
    log_every_steps: int = Field(default=10, ge=1, description="Steps between rows of metrics.")

    def is_deterministic(self, device_type: str) -> bool:
        """Whether deterministic algorithms run on a device of this type."""
        return device_type == "cpu" if self.deterministic == "auto" else self.deterministic == "on"

    def for_processes(self, processes: int) -> "TrainingConfig":
        """The same run with micro-batches that are counted over so many processes."""
        if not self.micro_batch_per_process:
            return self
        stages = tuple(
            s.model_copy(update={"micro_batch_size": s.micro_batch_size and processes * s.micro_batch_size})
            for s in self.stages
        )
        whole = {"micro_batch_size": processes * self.micro_batch_size, "micro_batch_per_process": False}
        return self.model_copy(update=whole | {"stages": stages})

    @property
    def deployed_seed(self) -> int:
        """The seed of the run that is evaluated and exported."""
        return self.seeds[0] if self.deploy_seed is None else self.deploy_seed

    @property
    def batch_shapes(self) -> tuple[BatchShape, ...]:
        """That of the run's beginning, and that of each stage."""
        shapes = [BatchShape(0, self.sequence_length, self.batch_size, self.micro_batch_size or self.batch_size)]
        micro = self.micro_batch_size
        for stage in self.stages:
            length = stage.sequence_length or shapes[-1].sequence_length
            batch = stage.batch_size or shapes[-1].batch_size
            micro = micro if stage.micro_batch_size is None else stage.micro_batch_size
            shapes.append(BatchShape(stage.from_step, length, batch, micro or batch))
        return tuple(shapes)

    @property
    def tokens(self) -> int:
        """Of the whole run."""
        ends = [shape.first_step for shape in self.batch_shapes[1:]] + [self.steps]
        return sum((end - s.first_step) * s.tokens for s, end in zip(self.batch_shapes, ends, strict=True))

    @model_validator(mode="after")
    def _schedule_fits_the_run(self) -> "TrainingConfig":
        begins = [0, *(stage.from_step for stage in self.stages), self.steps]
        if any(a >= b for a, b in pairwise(begins)):
            raise ValueError(f"stages begin at {begins[1:-1]}: each must begin later, and before steps ({self.steps})")
        for shape in self.batch_shapes:
            if shape.batch_size % shape.micro_batch_size:
                where = f" (stage from step {shape.first_step})" if shape.first_step else ""
                raise ValueError(
                    f"micro_batch_size {shape.micro_batch_size} does not divide batch_size {shape.batch_size}{where}"
                )
        if self.schedule == "warmup_stable_decay" and not 1 <= self.decay_steps <= self.steps - self.warmup_steps:
            raise ValueError(
                f"decay_steps is {self.decay_steps}: schedule 'warmup_stable_decay' takes 1 to steps - warmup_steps "
                f"({self.steps - self.warmup_steps})"
            )
        return self

    @model_validator(mode="after")
    def _gathers_fit_the_precision(self) -> "TrainingConfig":
        if self.gather_dtype == "bfloat16" and self.precision == "float32":
            raise ValueError("gather_dtype is 'bfloat16' and precision 'float32': set precision to auto or bfloat16")
        return self

    @model_validator(mode="after")
    def _axes_fit_the_operators(self) -> "TrainingConfig":
        chosen = usual_axes()
        for kind, axis in self.weight_norm_axes.items():
            operator, _, layer = kind.partition(".")
            if kind not in chosen:
                raise ValueError(f"weight_norm_axes has '{kind}': allowed are {', '.join(chosen)}")
            if axis == "heads" and (kind == EMBEDDING or layer not in OPERATOR_SPECS[operator].heads):
                raise ValueError(
                    f"weight_norm_axes.{kind} is 'heads', but it has none: allowed are rows, columns, none"
                )
        chosen |= self.weight_norm_axes
        for letter in OPERATOR_SPECS if chosen[EMBEDDING] == "none" else ():
            if all(axis == "none" for kind, axis in chosen.items() if kind.startswith(f"{letter}.")):
                raise ValueError(
                    f"weight_norm_axes leaves nothing of a model of {letter} and the embedding to normalise: for runs "
                    "without weight normalisation set weight_norm to [off]"
                )
        return self

    @model_validator(mode="after")
    def _variants_are_usable(self) -> "TrainingConfig":
        if not self.weight_norm or not self.seeds:
            raise ValueError("weight_norm and seeds each need at least one value")
        if self.deploy != "best" and self.deploy not in self.weight_norm:
            raise ValueError(f"deploy is '{self.deploy}': allowed are 'best' and the values of weight_norm")
        if self.deploy_seed is not None and self.deploy_seed not in self.seeds:
            raise ValueError(f"deploy_seed is {self.deploy_seed}: allowed are the values of seeds, {list(self.seeds)}")
        return self


class EvaluationConfig(Section):
    """What is measured on the chosen checkpoint."""

    sequence_length: int = Field(default=1024, ge=8, description="Tokens of context that a prediction may see.")
    stride: int = Field(
        default=0, ge=0, description="Tokens from one window of a document to the next; 0: sequence_length."
    )
    batch_size: int = Field(default=16, ge=1, description="Windows that are evaluated together.")
    max_tokens: int = Field(default=0, ge=0, description="Test tokens that are evaluated; 0: the whole split.")
    needle_lengths: Distinct[Annotated[int, Field(ge=18)]] = Field(
        default=(1024, 4096), description="Tokens of the texts that a key and its value have to be found in."
    )
    needle_samples: int = Field(default=32, ge=1, description="Texts per needle length.")
    recall_tasks: Distinct[Literal["single_1", "single_2", "single_3", "mqar"]] = Field(
        default=(),
        description="Recall from long texts: a fact in words, hidden as RULER's single needles are, or mqar: sixteen "
        "pairs of tokens.",
    )
    recall_lengths: Distinct[Annotated[int, Field(ge=512)]] = Field(
        default=(1024, 4096), description="Tokens of the texts of recall_tasks, the answer among them."
    )
    recall_samples: int = Field(default=64, ge=1, description="Texts per recall task and length.")
    lm_eval_tasks: Annotated[Distinct[str], LocalPath(or_id=True)] = Field(
        default=(),
        description="Tasks of lm-evaluation-harness by name, by the YAML file of a task of your own, or several by "
        "preset:NAME (commonsense_8, commonsense_6, mmlu, gsm8k, code, recall, ruler).",
    )
    task_data: Annotated[str, LocalPath()] = Field(
        default="",
        description="Directory of evaluation sets (SET_SPLIT.jsonl[.zst]) in place of the hub; empty: the hub.",
    )
    run_generated_code: bool = Field(
        default=False, description="Tasks may run the programs that the model writes, on this machine, as this user."
    )
    lm_eval_files: dict[str, str] = Field(
        default={}, description="sha256 of what each task file reads and of task_data; a local run fills it in."
    )
    lm_eval_limit: int = Field(default=0, ge=0, description="Documents per task; 0: all.")

    @model_validator(mode="after")
    def _stride_leaves_no_gap(self) -> "EvaluationConfig":
        if self.stride > self.sequence_length:
            raise ValueError(f"stride is {self.stride}: at most sequence_length ({self.sequence_length})")
        return self


class ExportConfig(Section):
    """What the exported directory holds."""

    license: str = Field(
        default="unknown",
        pattern=r"^[a-z0-9][a-z0-9.+-]*$",
        description="The weights' licence in the model card, by the hub's identifier, such as apache-2.0.",
    )
    dtype: Literal["float32", "bfloat16"] = Field(default="bfloat16", description="Of the exported weights.")
    max_shard_bytes: int = Field(default=5_000_000_000, ge=1_000_000, description="Bytes per safetensors file at most.")
    parity_tokens: int = Field(
        default=128, ge=8, description="Tokens on which the reloaded export must give the same logits."
    )
    parity_tolerance: float = Field(
        default=1e-4, gt=0, description="Largest absolute difference of those logits, in fp32."
    )


Unclear = Literal["hold", "measured", "promote"]


class CannotTell(Section):
    """What the gate does where an interval does not say on which side of a bound the candidate is.

    hold: the candidate is held. measured: the measured value decides as if it were exact. promote: the bound counts as
    kept.
    """

    gain: Unclear = Field(default="hold", description="Unclear whether the wanted gain is there.")
    loss: Unclear = Field(default="measured", description="Unclear whether a tolerated loss is exceeded.")
    latency: Unclear = Field(default="hold", description="Unclear whether the latency is within its limit.")


class GateConfig(Section):
    """When a model may become champion. A limit of 0 means no limit."""

    model_name: str = Field(
        default="flashslm", pattern=MODEL_NAME, description="The model's name in MLflow's registry."
    )
    max_perplexity: float = Field(default=0.0, ge=0, description="Test perplexity at most; 0: no limit.")
    max_latency_ms: float = Field(default=0.0, ge=0, description="Measured ms per decoded token at most; 0: no limit.")
    max_parameters: int = Field(default=0, ge=0, description="Parameters at most; 0: no limit.")
    max_rounding_loss: float = Field(
        default=0.005,
        ge=0,
        description="Perplexity of weights in int8 over that of the same weights before rounding, relative.",
    )
    min_perplexity_gain: float = Field(
        default=0.0, ge=0, description="Relative gain in perplexity that a challenger must show over the champion."
    )
    max_latency_increase: float = Field(
        default=0.1, ge=0, description="Latency over the champion's on the same device, relative."
    )
    max_size_increase: float = Field(default=0.1, ge=0, description="Parameters over the champion's, relative.")
    max_perplexity_increase: float = Field(
        default=0.01,
        ge=0,
        description="Retraining: perplexity over the champion's, relative, on data it was judged on.",
    )
    max_accuracy_drop: float = Field(
        default=0.02,
        ge=0,
        le=1,
        description="Retraining: accuracy below the champion's, absolute, on needles and tasks.",
    )
    cannot_tell: CannotTell = CannotTell()
    promotion_hook: PromotionHook = PromotionHook()

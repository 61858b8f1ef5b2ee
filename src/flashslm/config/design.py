"""Sections that say what is designed: the data, the model family, its kernels, latency, scaling law and search."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from flashslm.config.operator_sizes import OperatorSizes
from flashslm.config.paths import LocalPath
from flashslm.config.section import Depth, Distinct, Factor, Positive, Section, Switch, Width
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, OPERATORS

WeightFormat = Literal["full", "int8"]  # full: as the model has them; int8: a matrix has 8 bits and a scale per row
OutputInit = Literal["normal", "scaled", "zero"]  # of the matrices that write to the residual stream


class DataConfig(Section):
    """Where text comes from and how it becomes token shards."""

    source: Literal["python-stdlib", "files", "huggingface"] = Field(
        default="python-stdlib",
        description="Where the text comes from: the source of this interpreter's standard library, files, or the hub.",
    )
    paths: Annotated[tuple[str, ...], LocalPath()] = Field(
        default=(),
        description="source 'files': local or s3:// paths, globs allowed, of .parquet, .jsonl[.gz|.zst], .txt, .py and "
        ".md files.",
    )
    text_field: str = Field(default="text", description="The column or key that holds a document's text.")
    dataset: Annotated[str, LocalPath(or_id=True)] = Field(
        default="", description="source 'huggingface': the data set's id on the hub, or a directory."
    )
    dataset_config: str = Field(default="", description="The data set's configuration; empty: its default.")
    dataset_split: str = Field(default="train", description="The split that is read.")
    dataset_revision: str = Field(
        default="", description="Commit, tag or branch on the hub; empty: the newest when the step runs."
    )
    max_bad_rows_fraction: float = Field(
        default=0.0, ge=0, lt=1, description="Share of the rows that may be unreadable; 0: the first one is an error."
    )
    near_duplicates: Literal["keep", "drop"] = Field(
        default="keep", description="Documents that share most of their word 5-grams (MinHash): drop all but the first."
    )
    decontaminate_against: Annotated[tuple[str, ...], LocalPath()] = Field(
        default=(),
        description="Files of evaluation sets, as in paths, or directories of them: documents with 12 words in a row "
        "of any of their texts are dropped. evaluation.task_data is added where there are lm_eval_tasks.",
    )
    max_bytes: int = Field(default=0, ge=0, description="Bytes of text to read; 0: all of it.")
    validation_fraction: float = Field(
        default=0.05, gt=0, lt=0.5, description="Share of the documents that may steer, but are not trained on."
    )
    test_fraction: float = Field(
        default=0.05, gt=0, lt=0.5, description="Share of the documents that only judge, and steer nothing."
    )
    tokenizer: Annotated[str, LocalPath(or_id=True)] = Field(
        default="train", description="'train': byte-level BPE on this text; else a directory or an id on the hub."
    )
    tokenizer_revision: str = Field(
        default="", description="Commit, tag or branch of a tokenizer on the hub; empty: the newest."
    )
    vocab_size: int = Field(default=4096, ge=258, description="Vocabulary of a tokenizer that is trained.")
    tokenizer_bytes: int = Field(
        default=4_000_000, ge=10_000, description="Bytes of text that the tokenizer is trained on."
    )
    shard_tokens: int = Field(default=16_777_216, ge=1024, description="Tokens per shard.")
    piece_bytes: int = Field(
        default=268_435_456,
        ge=1,
        description="Bytes of files that are prepared as one piece; a larger file is one. A kill costs a piece.",
    )
    workers: int = Field(default=1, ge=1, le=64, description="Tasks of the pipeline that share the pieces of the text.")

    @model_validator(mode="after")
    def _source_has_its_fields(self) -> "DataConfig":
        if self.source == "files" and not self.paths:
            raise ValueError("source 'files' needs paths: a list of local or s3:// files or globs")
        if self.source == "huggingface" and not self.dataset:
            raise ValueError("source 'huggingface' needs dataset: a hub id such as 'HuggingFaceFW/fineweb-edu'")
        return self


class ModelConfig(Section):
    """Sizes every architecture of a run shares; widths are searched, order and repeats too."""

    head_dim: int = Field(default=64, ge=4, le=256, description="Size of a head of attention and of DeltaNet.")
    kv_group: int = Field(
        default=4,
        ge=1,
        description="Query heads per key/value head, as far as the number of heads can be divided by it.",
    )
    ffn_ratio: float = Field(
        default=3.0, gt=0, le=1024, description="Hidden size of the feed-forward layer over the width."
    )
    mamba_state: int = Field(default=128, ge=4, le=1024, description="State size of Mamba-2 per head channel.")
    mamba_head_dim: int = Field(default=64, ge=4, description="Size of a head of Mamba-2.")
    mamba_expand: int = Field(default=2, ge=1, le=64, description="Inner size of Mamba-2 over the width.")
    num_meta_tokens: int = Field(default=256, ge=0, description="Learned tokens in front of every sequence.")
    max_position_embeddings: int = Field(default=33_024, ge=64, description="Positions, meta tokens included.")
    rope_theta: float = Field(default=10_000.0, gt=0, description="Base of the rotary position embedding.")
    rope_type: Literal["default", "ntk"] = Field(default="default", description="How rotary frequencies are scaled.")
    original_max_position_embeddings: int = Field(
        default=0, ge=0, description="rope_type 'ntk': the positions that the unscaled frequencies were made for."
    )
    norm_eps: float = Field(default=1e-6, gt=0, description="Added to the mean square in every RMSNorm.")
    qk_norm: bool = Field(default=False, description="RMSNorm over each head of attention's queries and keys.")
    window: int = Field(default=512, ge=1, description="Keys that a query of window attention (W) sees.")
    output_init: OutputInit = Field(
        default="normal",
        exclude_if=lambda value: value == "normal",
        description="Initial values of the matrices that write to the residual stream, in pretraining, experiments and "
        "the proxies of scaling law and search. normal: like the other matrices; scaled: those over the root of twice "
        "the number of layers, which weight normalisation of them undoes; zero: each layer begins as the identity.",
    )


class KernelsConfig(Section):
    """Which form of each operation runs; the choice is logged and recorded with the run.

    auto is torch's form on a CPU and the fused one on CUDA; a fused form that is not installed is an error that names
    the other one. In fp32 attention, the delta rules, GLA and decoding take torch's form: those kernels are half
    precision only. mamba-ssm's products of fp32 tensors have tf32's accuracy.
    """

    default: Literal["auto", "torch"] = Field(
        default="auto", description="What auto means in the other settings; torch: torch's form on every device."
    )
    delta_rule: Literal["auto", "chunked", "fla"] = Field(default="auto", description="The delta rule of DeltaNet.")
    gated_delta_rule: Literal["auto", "chunked", "fla"] = Field(
        default="auto", description="The rule of Gated DeltaNet."
    )
    gla: Literal["auto", "chunked", "fla"] = Field(default="auto", description="Gated linear attention.")
    ssd: Literal["auto", "chunked", "mamba-ssm"] = Field(default="auto", description="Mamba-2's scan.")
    causal_conv: Literal["auto", "shifted", "triton"] = Field(
        default="auto", description="The short causal convolutions."
    )
    rotary: Literal["auto", "torch", "triton"] = Field(
        default="auto", description="Rotary position embedding, with the norms of attention's heads."
    )
    attention: Literal["auto", "sdpa", "flash"] = Field(default="auto", description="Softmax attention.")
    cross_entropy: Literal["auto", "chunked", "triton"] = Field(
        default="auto",
        description="The head with its loss, or with the log-probabilities of given tokens (those are chunked in fp32, "
        "and on GPUs with less than 144 KiB of shared memory per block).",
    )
    elementwise: Literal["auto", "torch", "inductor"] = Field(
        default="auto", description="Norms, gates and residual additions in training; the gates of a prefill."
    )
    decode: Literal["auto", "torch", "fused"] = Field(default="auto", description="The decode step of a model in use.")


class ProfilingConfig(Section):
    """What the latency table measures, on the present device, with the engine that ships."""

    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where latency is measured; auto: CUDA if any."
    )
    proxy_device: Literal["profiled", "auto", "cpu", "cuda"] = Field(
        default="profiled",
        description="Where proxies of scaling law and search are trained; profiled: on `device`; auto: CUDA if any. "
        "So a GPU may train what is made for a CPU's latency.",
    )
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto", description="Of weights and caches; auto: bfloat16 on CUDA, float32 on a CPU."
    )
    weights: WeightFormat = Field(
        default="full",
        description="Of the deployed model: what latencies are measured with, what is evaluated, what the export is "
        "served with. int8: every matrix is rounded to 8 bits with a scale per row, and steps of few sequences read "
        "those.",
    )
    threads: int = Field(default=1, ge=1, description="Threads of a CPU that is measured, or trains proxies.")
    compile_processes: int = Field(
        default=4, ge=0, description="CUDA: processes that compile the table's kernels before they are measured."
    )
    operators: str = Field(
        default=EXPORTABLE_OPERATORS,
        pattern=rf"^[{OPERATORS}]+$",
        description="Letters of the operators in the table; the exportable ones, which the search uses, are required.",
    )
    widths: Distinct[Width] = Field(
        default=(1024, 1280, 1536, 1792, 2048, 2304, 2560), min_length=1, description="Hidden sizes of the table."
    )
    contexts: Distinct[Positive] = Field(
        default=(1024, 8192), min_length=1, description="Text tokens in the cache at which operators are timed."
    )
    batches: Distinct[Positive] = Field(default=(1,), min_length=1, description="Sequences that are decoded together.")
    sizes: OperatorSizes = Field(
        default=OperatorSizes(),
        exclude_if=lambda sizes: sizes.is_empty,
        description="Further values of the model section's sizes at which operators are timed, where they fit the "
        "width; those of search.sizes are added.",
    )
    warmup: int = Field(default=3, ge=0, description="Untimed runs before each measurement.")
    repeats: int = Field(default=20, ge=3, description="Timed runs per measurement; the median counts.")
    sweep_block: str = Field(
        default="DFMF", description="Operators of the block whose repeats make the depth-width sweep."
    )
    sweep_depths: Distinct[Depth] = Field(
        default=(6, 12, 18, 24, 30), min_length=1, description="Token mixers of the sweep's models of equal parameters."
    )
    sweep_parameters: Distinct[Positive] = Field(
        default=(300_000_000, 500_000_000, 1_000_000_000), min_length=1, description="Parameters of the sweep's models."
    )
    calibration_models: int = Field(
        default=0,
        ge=0,
        description="Whole models per batch that a step's overhead is fitted on, near the latency budget; 0: no fit.",
    )
    check_models: int = Field(
        default=8,
        ge=1,
        description="Random whole models whose measured latency is compared with the table's prediction.",
    )

    @property
    def training_device(self) -> Literal["auto", "cpu", "cuda"]:
        """Where proxies are trained, as `hardware.pick_device` takes it."""
        return self.device if self.proxy_device == "profiled" else self.proxy_device

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

    context: int = Field(default=8192, ge=1, description="Text tokens in the cache at which the budget holds.")
    batch: int = Field(default=1, ge=1, description="Sequences decoded together.")
    target_ms: float = Field(
        default=0.0, ge=0, description="The budget in ms per token; 0: that of the reference below."
    )
    reference_operators: str = Field(
        default="DFMF AFMF DFMF AFMF DFMF DFMF", description="Operators of the reference architecture."
    )
    reference_width: int = Field(
        default=2048, ge=8, le=65_536, description="Hidden size of the reference architecture."
    )
    reference_factor: float = Field(default=1.0, gt=0, description="The budget over the reference's predicted latency.")


class ScalingConfig(Section):
    """The small (depth, width) family of the law L0 + a·D^-alpha + b·W^-beta + c·N^-(gamma + kappa·log(D·W²/S0))."""

    workers: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Processes that train the family's models side by side on one device, each on `profiling.threads` "
        "threads of a CPU.",
    )
    block: str = Field(default="DFMF", description="Operators of the block whose repeats make the depth.")
    depths: Distinct[Depth] = Field(
        default=(6, 12, 18), min_length=1, description="Token mixers of the trained models."
    )
    widths: Distinct[Width] = Field(
        default=(512, 768, 1024), min_length=1, description="Hidden sizes of the trained models."
    )
    holdout_depth: Depth = Field(default=24, description="Token mixers of the model that the law has to predict.")
    holdout_width: int = Field(default=1536, ge=8, le=65_536, description="Hidden size of that model.")
    checkpoints: int = Field(
        default=4, ge=2, le=1000, description="Points in training tokens that are read off each run."
    )
    steps: int = Field(default=1000, ge=4, description="Optimizer steps of each run.")
    batch_size: int = Field(default=32, ge=1, description="Sequences per optimizer step.")
    sequence_length: int = Field(default=1024, ge=8, description="Tokens per sequence.")
    learning_rate: float = Field(default=1e-3, gt=0, description="Peak learning rate.")
    validation_tokens: int = Field(default=524_288, ge=1, description="Validation tokens that a loss is measured on.")
    cuda_graph: Literal["auto"] | Switch = Field(default="off", description="Of each training, as training.cuda_graph.")
    bootstrap: int = Field(
        default=100, ge=10, description="Resampled fits behind the law's 90 % intervals; fewer than 19 narrow them."
    )
    choice_depths: Distinct[Depth] = Field(
        default=(6, 12, 18, 24, 30),
        min_length=1,
        description="Depths among which the law chooses under the latency budget.",
    )
    other_budgets: Distinct[Factor] = Field(
        default=(0.5, 2.0),
        description="Further budgets, over the latency budget, for which the report names depth and width.",
    )


class SearchConfig(Section):
    """Aging evolution (Real et al. 2019) over three-stage architectures; the proxy is a short training run."""

    workers: int = Field(default=2, ge=1, le=64, description="Processes that train candidates of the shared study.")
    trials: int = Field(default=200, ge=1, description="Candidates that are trained in all.")
    population: int = Field(default=32, ge=2, description="Newest trials that parents are drawn from.")
    sample: int = Field(default=8, ge=1, description="Trials of a tournament; the best of them becomes the parent.")
    candidates_per_cycle: int = Field(
        default=10, ge=1, description="Candidates that are trained at the same time at most."
    )
    strategy: Literal["evolution", "random"] = Field(
        default="evolution",
        description="What follows the seed designs: children of the best, after a random population; or random designs "
        "alone, the baseline of equal cost.",
    )
    proposals: Literal["cycles", "window"] = Field(
        default="cycles",
        description="cycles: candidates_per_cycle candidates are proposed together once those before are finished. "
        "window: each one by itself, as soon as all but the candidates_per_cycle - 1 before it are: no worker waits "
        "for the slowest of a cycle.",
    )
    seeding: Literal["designs", "law", "none"] = Field(
        default="designs",
        description="What is trained first: seed_designs (known designs if it is empty) and the scaling law's choice; "
        "law: that choice alone; none: random designs.",
    )
    max_operators: int = Field(default=30, ge=1, le=1024, description="Operators of an architecture at most.")
    max_mixer_types: int = Field(default=2, ge=1, le=3, description="Kinds of token mixers per block type at most.")
    seed_designs: Distinct[str] = Field(
        default=(), description='Designs that are trained first: one operator string each, stages separated by "|".'
    )
    widths: Distinct[Width] = Field(
        default=(1024, 1280, 1536, 1792, 2048, 2304, 2560),
        min_length=1,
        description="Hidden sizes; a candidate takes the largest within the budget.",
    )
    sizes: OperatorSizes = Field(
        default=OperatorSizes(),
        exclude_if=lambda sizes: sizes.is_empty,
        description="Sizes inside operators that the search varies, one value for all layers of a candidate.",
    )
    steps: int = Field(default=500, ge=1, description="Optimizer steps of a candidate's proxy training.")
    halving_from_steps: int = Field(
        default=0,
        ge=0,
        description="Successive halving: steps after which candidates are compared for the first time; 0: each of them "
        "is trained to the end.",
    )
    halving_factor: int = Field(
        default=4,
        ge=2,
        description="One in so many of the candidates that were trained for a budget goes on, to the next budget: so "
        "many times as many steps.",
    )
    recall_steps: int = Field(
        default=0,
        ge=0,
        description="Optimizer steps in which a small model of a candidate's blocks learns to recall and copy, before "
        "the candidate's proxy training; its accuracy is the candidate's recall. 0: recall is not measured.",
    )
    recall_length: int = Field(
        default=64, ge=16, le=2048, multiple_of=2, description="Tokens of a sequence of those two synthetic tasks."
    )
    recall_min_accuracy: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="A candidate whose recall is lower is rejected without a proxy training; guessing reaches 0.125.",
    )
    objective: Literal["proxy_loss", "hypervolume"] = Field(
        default="proxy_loss",
        description="Which trial of a tournament becomes the parent, and which one wins: that of the lowest loss, or "
        "the best compromise of perplexity, recall and latency by its hypervolume (needs recall_steps).",
    )
    finalists: int = Field(
        default=0,
        ge=0,
        description="Best trials that are trained again with finalist_seeds seeds each; the best by their mean "
        "validation loss wins, and the test split judges. 0: the best trial wins.",
    )
    finalist_seeds: int = Field(default=3, ge=1, description="Seeds of each finalist, all of them new ones.")
    finalist_steps: int = Field(default=0, ge=0, description="Optimizer steps of a finalist's training; 0: `steps`.")
    batch_size: int = Field(default=32, ge=1, description="Sequences per optimizer step.")
    sequence_length: int = Field(default=1024, ge=8, description="Tokens per sequence.")
    learning_rate: float = Field(default=5e-4, gt=0, description="Peak learning rate.")
    validation_tokens: int = Field(
        default=524_288, ge=1, description="Validation tokens that the proxy loss is measured on."
    )
    cuda_graph: Literal["auto"] | Switch = Field(
        default="off", description="Of each candidate's training, as training.cuda_graph."
    )

    @model_validator(mode="after")
    def _sample_fits_population(self) -> "SearchConfig":
        if self.sample > self.population:
            raise ValueError(f"sample is {self.sample}: at most population ({self.population})")
        return self

    @model_validator(mode="after")
    def _hypervolume_has_recall(self) -> "SearchConfig":
        if self.objective == "hypervolume" and not self.recall_steps:
            raise ValueError(
                "objective is 'hypervolume' and recall_steps is 0: give the steps in which recall is learned"
            )
        return self

    @model_validator(mode="after")
    def _halving_begins_before_the_end(self) -> "SearchConfig":
        if self.halving_from_steps >= self.steps:
            raise ValueError(f"halving_from_steps is {self.halving_from_steps}: less than steps ({self.steps})")
        return self

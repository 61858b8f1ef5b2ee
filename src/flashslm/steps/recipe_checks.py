"""What a recipe must satisfy beyond its field types: checked before anything starts. No torch here."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from flashslm.config import EvaluationConfig, ModelConfig, RunConfig
from flashslm.evaluation import task_files, task_presets, tasks
from flashslm.export.hf_config import export_problems
from flashslm.hardware import DeviceKind, pick_device
from flashslm.inference.fused.size_limits import size_blockers
from flashslm.models.architecture import Architecture, InfeasibleArchitecture, build_architecture, parse_operators
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, SIZE_FIELDS, export_blockers
from flashslm.profiling.plan import ProfilingPlan
from flashslm.scaling.points import evaluation_steps, num_constants
from flashslm.search.space import SearchSpace


def problems(config: RunConfig) -> list[str]:
    """Every inconsistency of a recipe, each as: where, what was given, what is allowed."""
    sizes = [*_sizes(config), *_searched_sizes(config), *_measured_sizes(config)]
    return [*_operators(config), *_grid(config), *sizes, *_lengths(config), *_law(config), *_search(config)]


def _operators(config: RunConfig) -> Iterator[str]:
    notations = {
        "profiling.sweep_block": config.profiling.sweep_block,
        "scaling.block": config.scaling.block,
        "latency.reference_operators": config.latency.reference_operators,
    }
    for where, text in notations.items():
        try:
            blockers = export_blockers(parse_operators(text))
        except InfeasibleArchitecture as error:
            yield f"{where}: {error}"
            continue
        if blockers:
            yield (
                f"{where}: '{text}' has operators that cannot be exported: {'; '.join(blockers)}; the latency table "
                f"measures only those that can: {', '.join(EXPORTABLE_OPERATORS)}"
            )
    space = SearchSpace(config.search.max_operators, config.search.max_mixer_types)
    for index, text in enumerate(config.search.seed_designs):
        try:
            space.parse(text)
        except InfeasibleArchitecture as error:
            yield f"search.seed_designs[{index}]: {error}"


def _law(config: RunConfig) -> Iterator[str]:
    """The fit needs more points than the law has constants, and a held-out model that it does not see."""
    scaling = config.scaling
    tokens = evaluation_steps(scaling.steps, scaling.checkpoints)
    points, constants = (
        len(scaling.depths) * len(scaling.widths) * len(tokens),
        num_constants(len(scaling.depths), len(scaling.widths), len(tokens)),
    )
    if points <= constants:
        yield (
            f"scaling: {len(scaling.depths)} depths x {len(scaling.widths)} widths x {len(tokens)} token counts are "
            f"{points} points for a law of {constants} constants: give at least {constants + 1} (more depths, widths, "
            "or checkpoints of longer runs)"
        )
    if scaling.holdout_depth in scaling.depths and scaling.holdout_width in scaling.widths:
        yield (
            f"scaling.holdout_depth: depth {scaling.holdout_depth} and width {scaling.holdout_width} are in the grid "
            "that the law is fitted to: hold out another model"
        )


def _search(config: RunConfig) -> Iterator[str]:
    search = config.search
    if search.strategy == "evolution" and search.trials < search.population:
        yield (
            f"search.trials: {search.trials} are fewer than search.population ({search.population}): nothing would "
            "evolve"
        )
    space, seen = SearchSpace(search.max_operators, search.max_mixer_types), dict[str, int]()
    for index, text in enumerate(search.seed_designs):
        with suppress(InfeasibleArchitecture):  # named by `_operators`
            first = seen.setdefault(space.parse(text).operators, index)
            if first != index:
                yield f"search.seed_designs[{index}]: '{text}' is the same design as '{search.seed_designs[first]}'"


def problems_before_a_run(config: RunConfig, runs_here: bool = False) -> list[str]:
    """`problems`, and task names that the harness does not have: asking it takes seconds.

    Where it is not installed they are judged where it is.
    """
    sizes = config.model
    text_positions = sizes.max_position_embeddings - sizes.num_meta_tokens
    return [*problems(config), *task_problems(config.evaluation, text_positions, runs_here)]


def task_problems(
    evaluation: EvaluationConfig, text_positions: int | None = None, runs_here: bool = False
) -> list[str]:
    """What is wrong with the tasks of lm-evaluation-harness, as far as it is known where this is asked."""
    named = evaluation.lm_eval_tasks
    judged = [*task_presets.problems(named), *task_files.problems(named)]
    found = [f"evaluation.lm_eval_tasks: {problem}" for problem in judged]
    if named and evaluation.task_data and not Path(evaluation.task_data).is_dir():
        return [*found, f"evaluation.task_data: the directory '{evaluation.task_data}' does not exist"]
    if named and not judged and tasks.is_installed():
        found += tasks.problems(evaluation, text_positions, runs_here)
    return found


def problems_before_a_run_here(config: RunConfig) -> list[str]:
    """The same, with what the recipe needs of this machine: what Python lacks, and kernels that its GPU lacks."""
    if config.evaluation.lm_eval_tasks and not tasks.is_installed():
        missing = "evaluation.lm_eval_tasks: they need lm_eval: pip install 'flashslm[evaluation]'"
        return [*problems(config), missing]
    return problems_before_a_run(config, runs_here=True) or _problems_of_this_gpu(config)


def _grid(config: RunConfig) -> Iterator[str]:
    """The latency table answers only for what it measured."""
    profiling, latency = config.profiling, config.latency
    used = {"search.widths": config.search.widths}
    if not latency.target_ms:
        used["latency.reference_width"] = (latency.reference_width,)
    for where, widths in used.items():
        if missing := sorted(set(widths) - set(profiling.widths)):
            yield f"{where}: {missing} not in profiling.widths {list(profiling.widths)}: the table must measure them"
    if not min(profiling.contexts) <= latency.context <= max(profiling.contexts):
        yield f"latency.context: {latency.context} is outside profiling.contexts {list(profiling.contexts)}"
    if latency.batch not in profiling.batches:
        yield f"latency.batch: {latency.batch} not in profiling.batches {list(profiling.batches)}"


def _sizes(config: RunConfig) -> Iterator[str]:
    """What the run designs at a width must be buildable, and an export must be able to hold it."""
    widths = {*config.profiling.widths, *config.search.widths, *config.scaling.widths, config.scaling.holdout_width}
    blockers: list[str] = []  # the same at every width
    for width in sorted(widths):
        try:
            built = build_architecture(EXPORTABLE_OPERATORS, width, config.model, config.data.vocab_size)
        except InfeasibleArchitecture as error:
            yield f"model, at width {width}: {error}"
            continue
        blockers = _kernel_problems(config, built)
        for problem in export_problems(built):
            yield f"model, at width {width}: {problem}"
    yield from (f"model: {problem}" for problem in blockers)


def _searched_sizes(config: RunConfig) -> Iterator[str]:
    for name in SIZE_FIELDS:
        values, own = getattr(config.search.sizes, name), getattr(config.model, name)
        if values and own not in values:
            yield (
                f"search.sizes.{name}: {list(values)} without model.{name} ({own:g}), which seed designs have: add it"
            )
        if missing := [value for value in values if value not in getattr(config.profiling.sizes, name)]:
            yield f"search.sizes.{name}: {missing} not in profiling.sizes.{name}: the table must measure them"
        yield from (f"search.sizes.{name}: {problem}" for problem in _size_values(name, values, config))


def _size_values(name: str, values: Sequence[float], config: RunConfig) -> Iterator[str]:
    """Each value of a size at each width of the search, beside the recipe's own values of the others."""
    field, made = SIZE_FIELDS[name], dict[tuple[int, ...], float]()
    for value in values:
        sizes = config.model.model_copy(update={name: value})
        try:
            built = [_exportable(width, sizes, config) for width in sorted(config.search.widths)]
        except InfeasibleArchitecture as error:
            reason = str(error).replace(f"model.{name}", name)  # it is this value, not the model section's
            yield f"{value:g}: {reason}: remove the value"
            continue
        same = made.setdefault(tuple(getattr(architecture, field) for architecture in built), value)
        if same != value:
            yield f"{same:g} and {value:g} are the same {field} at every width of the search: remove one of them"


def _exportable(width: int, sizes: ModelConfig, config: RunConfig) -> Architecture:
    """Raises InfeasibleArchitecture where no architecture has these sizes, or no export, or no kernel of a GPU."""
    built = build_architecture(EXPORTABLE_OPERATORS, width, sizes, config.data.vocab_size)
    if found := [*export_problems(built), *_kernel_problems(config, built)]:
        raise InfeasibleArchitecture(f"at width {width}: {'; '.join(found)}")
    return built


def _kernel_problems(config: RunConfig, built: Architecture) -> list[str]:
    """Sizes for which the GPU that the recipe asks for has no decode kernel."""
    profiling, forms = config.profiling, (config.kernels.decode, config.kernels.default)
    if profiling.device != "cuda" or profiling.dtype == "float32" or "torch" in forms:
        return []
    return [f"no fused decode kernel ({problem}; or set kernels.decode: torch)" for problem in size_blockers(built)]


def kernel_problems_of_a_plan(config: RunConfig, plan: ProfilingPlan) -> list[str]:
    """Sizes that are measured and for which the plan's device has no decode kernel.

    `problems` cannot know them where `profiling.device` is auto. Only sections of the step that measures are read.
    """
    known = _on(plan.device, config)
    layers = (plan.layer(key) for key in plan.entry_keys())
    return list(dict.fromkeys(problem for layer in layers for problem in _kernel_problems(known, layer)))


def _on(device: DeviceKind, config: RunConfig) -> RunConfig:
    return config.model_copy(update={"profiling": config.profiling.model_copy(update={"device": device})})


def _problems_of_this_gpu(config: RunConfig) -> list[str]:
    """What `problems` would find, had the recipe named the GPU that `auto` takes here."""
    found = problems(_on("cuda", config)) if config.profiling.device == "auto" else []
    if not found or pick_device("auto") == "cpu":  # that imports torch, so it is asked last
        return []
    return [f"{problem}; profiling.device: auto is this machine's GPU, cpu is the other choice" for problem in found]


def _measured_sizes(config: RunConfig) -> Iterator[str]:
    """Further values that only the table has: each is possible at some width, and the GPU has a kernel for it."""
    widths = config.profiling.widths
    for name in SIZE_FIELDS:
        searched = getattr(config.search.sizes, name)
        for value in (value for value in getattr(config.profiling.sizes, name) if value not in searched):
            where, built = f"profiling.sizes.{name}: {value:g}", None
            sizes = config.model.model_copy(update={name: value})
            for width in sorted(widths):
                with suppress(InfeasibleArchitecture):
                    built = build_architecture(EXPORTABLE_OPERATORS, width, sizes, config.data.vocab_size)
            if built is None:
                yield f"{where} is possible at none of profiling.widths {list(widths)}: remove it, or add a width"
            else:
                yield from (f"{where}: {problem}" for problem in _kernel_problems(config, built))


def _lengths(config: RunConfig) -> Iterator[str]:
    """Meta tokens take positions too."""
    limit = config.model.max_position_embeddings
    longest = {
        "scaling.sequence_length": config.scaling.sequence_length,
        "search.sequence_length": config.search.sequence_length,
        "training.sequence_length": config.training.sequence_length,
        "training.stages": max(shape.sequence_length for shape in config.training.batch_shapes),
        "evaluation.sequence_length": config.evaluation.sequence_length,
        "evaluation.needle_lengths": max(config.evaluation.needle_lengths, default=0),
        "evaluation.recall_lengths": _longest_recall(config),
        "evaluation.lm_eval_tasks": task_presets.shortest_text(config.evaluation.lm_eval_tasks),
        "latency.context": config.latency.context,
    }
    for where, length in longest.items():
        if length + config.model.num_meta_tokens > limit:
            yield (
                f"{where}: {length} and {config.model.num_meta_tokens} meta tokens exceed "
                f"model.max_position_embeddings {limit}"
            )


def _longest_recall(config: RunConfig) -> int:
    return max(config.evaluation.recall_lengths, default=0) if config.evaluation.recall_tasks else 0


def beyond_positions(architecture: Architecture, config: RunConfig) -> list[str]:
    """The texts of a recipe that are too long for a model that exists."""
    text_tokens = architecture.max_position_embeddings - architecture.num_meta_tokens
    lengths = {
        "training.sequence_length": config.training.sequence_length,
        "evaluation.sequence_length": config.evaluation.sequence_length,
        "evaluation.needle_lengths": max(config.evaluation.needle_lengths, default=0),
        "evaluation.recall_lengths": _longest_recall(config),
        "latency.context": config.latency.context,
    }
    return [
        f"the recipe's {where} is {length}, the model has positions for {text_tokens} text tokens"
        for where, length in lengths.items()
        if length > text_tokens
    ]

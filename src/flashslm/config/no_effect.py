"""Settings that are given although others, or the place where training runs, make them do nothing.

`without_effect` knows the recipe alone. How many processes train, where and in which precision is known where they do:
`without_effect_here` then says the rest.
"""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from flashslm.config.experiment import ExperimentRecipe
from flashslm.config.recipe import RunConfig
from flashslm.config.steps import STEP_SECTIONS
from flashslm.config.training import ExportConfig, TrainingConfig
from flashslm.models.operator_spec import SIZE_FIELDS


def without_effect(config: RunConfig) -> list[str]:
    """Each as `section.key: why it has no effect`; only what the recipe itself gives counts, defaults never do."""
    if isinstance(config, ExperimentRecipe):
        found = [*_of_experiment(config), *_data(config), *_evaluation(config)]
    else:
        checks = (_data, _design, _beyond, _search, _training, _variants, _graphs, _evaluation, _hook, _platform)
        found = [one for check in checks for one in check(config)]
    return [f"{where}: no effect: {why}" for where, why in found]


def without_effect_here(training: TrainingConfig, processes: int, device: str, precision: str) -> dict[str, str]:
    """Why fields of a training section do nothing where so many processes train; fields with their default never count.

    `device` is cpu or cuda, `precision` the one that is used.
    """
    differing = TrainingConfig.model_validate(training.model_dump(exclude_defaults=True))
    found = [*_of_processes(differing, processes)]
    if processes > 1 and training.shard_processes != 1 and precision == "float32":
        found += _given(differing, "", ("gather_dtype",), "weights are float32 here, and sent as such")
    if device == "cuda":
        found += _given(differing, "", ("threads",), "a GPU trains")
    return dict(found)


Found = Iterator[tuple[str, str]]


def _given(section: BaseModel, where: str, names: tuple[str, ...], why: str) -> Found:
    yield from ((f"{where}.{name}".strip("."), why) for name in names if name in section.model_fields_set)


# Unread by `flashslm experiment`.
UNREAD_SECTIONS = ("scaling", "search", "gate", "retraining", "platform")
# Of the sections that it does read.
UNREAD_FIELDS: dict[str, tuple[str, ...]] = {
    "profiling": ("sizes", "sweep_block", "sweep_depths", "sweep_parameters", "calibration_models", "check_models"),
    "training": (
        *("deploy", "deploy_seed", "checkpoint_every_steps", "keep_checkpoints", "processes"),
        *("micro_batch_per_process", "shard_processes", "gather_dtype", "gradient_sync"),
    ),
    "evaluation": ("lm_eval_tasks",),
    "export": tuple(name for name in ExportConfig.model_fields if name != "dtype"),
}


def _of_experiment(recipe: ExperimentRecipe) -> Found:
    """What `flashslm experiment` does not read."""
    experiment, by_latency = recipe.experiment, recipe.experiment.match.startswith("latency")
    why = "an experiment does not read it"
    yield from ((name, why) for name in UNREAD_SECTIONS if name in recipe.model_fields_set)
    for name, fields in UNREAD_FIELDS.items():
        yield from _given(getattr(recipe, name), name, fields, why)
    for name, timed_at in (("contexts", recipe.latency.context), ("batches", recipe.latency.batch)):
        if timed_at not in getattr(recipe.profiling, name):
            yield from _given(
                recipe.profiling, "profiling", (name,), f"models are timed at {timed_at} (latency section)"
            )
    if experiment.match != "parameters":
        yield from _given(experiment, "experiment", ("parameters",), f"match is '{experiment.match}'")
    yield from _of_widths(recipe)
    if experiment.match != "latency_by_width":
        yield from _given(recipe.profiling, "profiling", ("widths",), f"match is '{experiment.match}'")
    if not by_latency and not experiment.measure_latency:
        unread = f"measure_latency is false and match is '{experiment.match}'"
        yield from _given(recipe, "", ("latency",), unread)
    elif recipe.latency.target_ms or not by_latency:
        reference = ("reference_operators", "reference_width", "reference_factor")
        yield from _given(recipe.latency, "latency", reference, "no model is matched with the reference")


def _of_widths(recipe: ExperimentRecipe) -> Found:
    """Widths that the match chooses, and the experiment's where every model has its own."""
    experiment, models = recipe.experiment, recipe.experiment.models
    if experiment.match in ("parameters", "latency_by_width"):
        why = f"match '{experiment.match}' chooses the width"
        yield from _given(experiment, "experiment", ("width",), why)
        for name, model in models.items():
            yield from _given(model, f"experiment.models.{name}", ("width",), why)
    elif all(model.width for model in models.values()):
        yield from _given(experiment, "experiment", ("width",), "every model has its own")


def _data(config: RunConfig) -> Found:
    data = config.data
    if data.source != "files":
        yield from _given(data, "data", ("paths",), f"source is '{data.source}'")
    if data.source != "huggingface":
        of_hub = ("dataset", "dataset_config", "dataset_split", "dataset_revision")
        yield from _given(data, "data", of_hub, f"source is '{data.source}'")
    if data.source == "python-stdlib":
        yield from _given(data, "data", ("text_field",), "a file of source code is one text")
        yield from _given(data, "data", ("max_bad_rows_fraction",), "a file of source code has no rows")
        yield from _given(data, "data", ("piece_bytes", "workers"), "source 'python-stdlib' is one piece")
    if data.source == "huggingface" and not data.max_bytes:
        yield from _given(data, "data", ("piece_bytes",), "without max_bytes a file of the hub is a piece")
    if data.source == "huggingface" and Path(data.dataset).is_dir():
        yield from _given(data, "data", ("dataset_revision",), f"'{data.dataset}' is a directory")
    if data.tokenizer == "train":
        yield from _given(data, "data", ("tokenizer_revision",), "the tokenizer is trained on the text")
    else:
        why = f"the tokenizer is '{data.tokenizer}' and is not trained"
        yield from _given(data, "data", ("vocab_size", "tokenizer_bytes"), why)
        if Path(data.tokenizer).is_dir():
            yield from _given(data, "data", ("tokenizer_revision",), f"'{data.tokenizer}' is a directory")


def _design(config: RunConfig) -> Found:
    model, profiling, latency = config.model, config.profiling, config.latency
    if model.rope_type == "default":
        yield from _given(model, "model", ("original_max_position_embeddings",), "rope_type is 'default'")
    if "W" not in profiling.operators:
        yield from _given(model, "model", ("window",), "profiling.operators has no window attention (W)")
    for operator, kernel in (("G", "gated_delta_rule"), ("L", "gla")):
        if operator not in profiling.operators:
            yield from _given(config.kernels, "kernels", (kernel,), f"profiling.operators has no {operator}")
    if profiling.device == profiling.training_device == "cuda":
        yield from _given(profiling, "profiling", ("threads",), "device is 'cuda'")
    if profiling.weights == "full":
        yield from _given(config.gate, "gate", ("max_rounding_loss",), "profiling.weights is 'full'")
    if profiling.device == "cpu":
        yield from _given(profiling, "profiling", ("compile_processes",), "device is 'cpu'")
    if latency.target_ms:
        names = ("reference_operators", "reference_width", "reference_factor")
        yield from _given(latency, "latency", names, f"target_ms is {latency.target_ms:g}")


def _beyond(config: RunConfig) -> Found:
    """Numbers of what works or is trained side by side, beyond what there is to do."""
    scaling, search, profiling, platform = config.scaling, config.search, config.profiling, config.platform
    for name, section, field, most, of in (
        ("scaling", scaling, "workers", len(scaling.depths) * len(scaling.widths) + 1, "models of the family"),
        ("search", search, "workers", search.trials, "trials"),
        ("search", search, "workers", search.candidates_per_cycle, "candidates at a time (candidates_per_cycle)"),
        ("search", search, "finalists", search.trials, "trials"),
        ("profiling", profiling, "compile_processes", len(profiling.widths), "widths"),
        ("platform", platform, "variants_at_once", len(config.variants()), "variants (weight_norm, seeds)"),
    ):
        if getattr(section, field) > most:
            yield from _given(section, name, (field,), f"it is beyond {most}, the number of {of}")


def _search(config: RunConfig) -> Found:
    search = config.search
    if search.strategy == "random":
        seeds_known_designs = search.seeding == "designs" and not search.seed_designs  # half a population of them
        unused = ("sample",) if seeds_known_designs else ("population", "sample")
        yield from _given(search, "search", unused, "strategy is 'random'")
    elif search.trials <= search.population:
        why = f"no trial descends from another: {search.trials} trials are at most population ({search.population})"
        yield from _given(search, "search", ("sample",), why)
    if search.seeding != "designs":
        yield from _given(search, "search", ("seed_designs",), f"seeding is '{search.seeding}'")
    if not search.halving_from_steps:
        yield from _given(search, "search", ("halving_factor",), "halving_from_steps is 0")
    if not search.recall_steps:
        yield from _given(search, "search", ("recall_length", "recall_min_accuracy"), "recall_steps is 0")
    if not search.finalists:
        yield from _given(search, "search", ("finalist_seeds", "finalist_steps"), "finalists is 0")
    for name in SIZE_FIELDS:
        if getattr(search.sizes, name) == (getattr(config.model, name),):
            yield f"search.sizes.{name}", f"its only value is that of model.{name}"


def _training(config: RunConfig) -> Found:
    for name, section in (("training", config.training), ("retraining", config.retraining)):
        if section.warmup_steps >= section.steps:
            why = f"{section.steps} steps end within the warm-up ({section.warmup_steps}): the rate never falls again"
            yield from _given(section, name, ("min_learning_rate_ratio",), why)
    training = config.training
    if training.schedule != "warmup_stable_decay":
        yield from _given(training, "training", ("decay_steps",), f"schedule is '{training.schedule}'")
    for name in ("validate_every_steps", "checkpoint_every_steps", "log_every_steps"):
        if getattr(training, name) > training.steps:
            yield from _given(training, "training", (name,), f"training ends after {training.steps} steps")
    for name, why in _of_processes(training, training.processes * config.platform.nodes):
        yield f"training.{name}", why
    if len(training.mixture) == 1 and not training.mixture[0].dataset:
        yield from _given(training, "training", ("mixture",), "its only source is this run's own data set")


def _variants(config: RunConfig) -> Found:
    training = config.training
    if len(training.weight_norm) == 1:
        yield from _given(training, "training", ("deploy",), "there is one variant (weight_norm)")
    if training.weight_norm == ("off",):
        why = "no variant has weight normalisation (weight_norm)"
        yield from _given(training, "training", ("weight_norm_rate_factor",), why)
    if len(training.seeds) == 1:
        yield from _given(training, "training", ("deploy_seed",), "there is one seed (seeds)")


def _of_processes(training: TrainingConfig, processes: int) -> Found:
    """What so many processes leave without effect; 0: as many as there are GPUs, which no recipe knows."""
    if processes == 1:
        several = ("micro_batch_per_process", "shard_processes", "gather_dtype", "gradient_sync")
        yield from _given(training, "", several, "one process trains")
        return
    if training.shard_processes == 1:
        why = "each process has its own weights and sends gradients alone (shard_processes)"
        yield from _given(training, "", ("gather_dtype",), why)
    if not any([training.micro_batch_size, *(stage.micro_batch_size for stage in training.stages)]):
        yield from _given(training, "", ("micro_batch_per_process",), "micro_batch_size is 0")
    shapes = training.for_processes(max(1, processes)).batch_shapes
    if all(shape.micro_batch_size == shape.batch_size for shape in shapes):
        yield from _given(training, "", ("gradient_sync",), "each step is one micro-batch (micro_batch_size)")


def _graphs(config: RunConfig) -> Found:
    training, several = config.training, config.training.processes > 1 or config.platform.nodes > 1
    if several or training.isolate_documents:
        why = "several processes train together" if several else "isolate_documents is on"
        yield from _given(training, "training", ("cuda_graph",), why)
    if config.profiling.training_device == "cpu":
        for name, section in (("scaling", config.scaling), ("search", config.search)):
            yield from _given(section, name, ("cuda_graph",), "proxies train on a CPU")


def _evaluation(config: RunConfig) -> Found:
    evaluation = config.evaluation
    if not evaluation.lm_eval_tasks:
        without = ("lm_eval_limit", "task_data", "run_generated_code")
        yield from _given(evaluation, "evaluation", without, "there are no lm_eval_tasks")
    if not evaluation.recall_tasks:
        unused = ("recall_lengths", "recall_samples")
        yield from _given(evaluation, "evaluation", unused, "there are no recall_tasks")
    if not evaluation.needle_lengths:
        yield from _given(evaluation, "evaluation", ("needle_samples",), "there are no needle_lengths")


def _hook(config: RunConfig) -> Found:
    hook, where = config.gate.promotion_hook, "gate.promotion_hook"
    if not hook.command and not hook.url:
        yield from _given(hook, where, ("secret_variable", "timeout_s", "attempts"), "there is neither command nor url")
    elif hook.command:
        yield from _given(hook, where, ("secret_variable",), "a command gets no signature")
    if not hook.url:
        yield from _given(config.platform, "platform", ("hook_secret",), "gate.promotion_hook has no url")


def _platform(config: RunConfig) -> Found:
    platform = config.platform
    if platform.nodes == 1:
        yield from _given(
            platform, "platform", ("training_runtime", "queue"), "nodes is 1, so that no TrainJob is made"
        )
    used = {platform.resources(step).gpu_type for step in STEP_SECTIONS}
    for name in platform.gpu_types:
        if name not in used:
            yield f"platform.gpu_types.{name}", "no step has this gpu_type"
    for name, group in (("cpu_steps", platform.cpu_steps), ("gpu_steps", platform.gpu_steps)):
        if not group.gpus and group.gpu_type:
            yield f"platform.{name}.gpu_type", "gpus is 0"
    for step in platform.steps:
        if platform.steps[step].gpu_type and not platform.resources(step).gpus:
            yield f"platform.steps.{step}.gpu_type", "gpus is 0"

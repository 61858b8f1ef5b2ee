"""A model directory from elsewhere as a registry version that retraining can start from: a command, no pipeline step.

What the gate compares is measured as the pipeline measures its own models. What the model was trained on is not known:
the recipe's data stand for it, are replayed against forgetting, and are what later models are compared on.
"""

import os
import stat
import tempfile
from pathlib import Path
from typing import Any, Literal

import torch

from flashslm.config import PromotionHook, RunConfig, digest
from flashslm.data.loader import TokenLoader
from flashslm.data.prepare import prepare_dataset
from flashslm.export.autodeploy import RECIPE_FILES
from flashslm.export.files import INDEX_FILE, link_or_copy, weight_files
from flashslm.export.hf_config import export_problems
from flashslm.export.importing import load_export, read_served_weights
from flashslm.export.mlflow_model import write_mlflow_model
from flashslm.export.model_code import foreign_code, own_code
from flashslm.export.tokenizer import TOKENIZER_FILES, write_tokenizer
from flashslm.export.verify import README, REQUIRED_FILES
from flashslm.export.weights import has_unit_rows
from flashslm.hardware import pick_device
from flashslm.infra.checkout import commit
from flashslm.infra.events import Events
from flashslm.infra.registry import model_registry
from flashslm.infra.registry.gate import MeasuredModel
from flashslm.infra.registry.model_registry import CHAMPION, IMPORTED, Lineage, ModelVersion, PromotionConflict
from flashslm.infra.registry.promotion import deliver_pending, is_heard
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.infra.tracking import mlflow_runs
from flashslm.models.hybrid import HybridLM
from flashslm.ops import kernels
from flashslm.steps.context import StepContext
from flashslm.steps.evaluate import BEFORE_ROUNDING, Evaluation, evaluate_served, for_evaluation
from flashslm.steps.export_model import measure
from flashslm.steps.merge_data import result_of
from flashslm.steps.recipe_checks import beyond_positions
from flashslm.training.weight_norm import weight_norms

STEP = "register_imported"
_KNOWN_FILES = {*REQUIRED_FILES, *TOKENIZER_FILES, README, *RECIPE_FILES, INDEX_FILE, "LICENSE", "LICENSE.md", "NOTICE"}


def register_imported(
    settings: Settings,
    directory: Path,
    recipe: RunConfig,
    name: str = "",
    alias: Literal["challenger", "champion"] = "challenger",
    replaces: str = "",
    foreign_allowed: bool = False,
) -> dict[str, Any]:
    """Register what `load_export` reads as a version of `name` (default: the recipe's gate.model_name).

    The same files are one version: a repetition measures nothing and only sets the alias. As champion it takes the
    place of version `replaces` and of no other ("" = there is none yet), and the recipe's promotion hook hears of it;
    a hook that fails is in the result's `hook` and undoes nothing. Raises as `load_export`, ValueError for what cannot
    be retrained, for links, special files and (unless `foreign_allowed`) other code, PromotionConflict where another
    version is champion; nothing is registered then.
    """
    if replaces and alias != CHAMPION:
        raise ValueError(
            f"a version to replace ({replaces}) is given with the alias '{alias}': only a champion has one"
        )
    name = name or recipe.gate.model_name
    with tempfile.TemporaryDirectory(prefix="flashslm-register-") as temporary:
        tokenizer = Path(temporary) / "tokenizer"
        tree = _gather(directory, Path(temporary) / "tree", foreign_allowed)
        model = _load_trainable(directory, recipe, tokenizer)
        recipe = _measured_as_served(recipe, directory)
        manifest = ObjectStore(settings).put_tree(tree, kind="exported")
        if alias == CHAMPION:
            _refuse_another_champion(settings, name, manifest, replaces)
        known = _known(settings, name, manifest)
        version = known.version if known else ""
        if known:
            model_registry.register(
                settings, name, known.manifest, known.run_id, known.facts, known.tags, known.lineage
            )
        else:
            version = _measure_and_register(settings, name, model, manifest, recipe, tokenizer, directory)
    outcome = _promote(settings, name, version, replaces, recipe.gate.promotion_hook) if alias == CHAMPION else ""
    return _result(model_registry.find(settings, name, version), known is None) | {"hook": outcome}


def _promote(settings: Settings, name: str, version: str, replaces: str, hook: PromotionHook) -> str:
    """Make it champion and call the hook; returns the outcome. A champion's hook is not called again."""
    before = model_registry.champion(settings, name)
    model_registry.promote(settings, name, version, expected_champion=replaces, notify=is_heard(hook))
    if before and before.version == version:
        return ""
    return deliver_pending(settings, name, hook)


def _load_trainable(directory: Path, recipe: RunConfig, tokenizer: Path) -> HybridLM:
    """The model, and its tokenizer as an export of the retrained model will have it, written to `tokenizer`."""
    model = load_export(directory, pick_device("auto"))
    a = model.architecture
    problems = export_problems(a) + beyond_positions(a, recipe)
    tokenizer.mkdir()
    try:
        write_tokenizer(directory, tokenizer, a.vocab_size, a.max_position_embeddings - a.num_meta_tokens)
    except ValueError as error:
        problems.append(str(error))
    if problems:
        raise ValueError(f"'{directory}' cannot be retrained: " + "; ".join(problems))
    return model


def _measured_as_served(recipe: RunConfig, directory: Path) -> RunConfig:
    """With the format of weights that the directory names, whatever the recipe's own models have."""
    profiling = recipe.profiling.model_copy(update={"weights": read_served_weights(directory)})
    return recipe.model_copy(update={"profiling": profiling})


def _gather(directory: Path, tree: Path, foreign_allowed: bool) -> Path:
    """The model's files as the pipeline's `exported` object has them, and nothing else that lies there.

    Raises ValueError for a link or a special file under one of their names, and for code that is not this project's
    unless `foreign_allowed`: a retraining never runs it, but a loader of the stored model would.
    """
    foreign = foreign_code(directory)
    if foreign and not foreign_allowed:
        listed = "; ".join(f"{name}: {said}" for name, said in foreign.items())
        raise ValueError(
            f"'{directory}' carries other code ({listed}): read it, then register with --foreign-code, or remove it"
        )
    target = tree / "huggingface"
    target.mkdir(parents=True)
    names = {*_KNOWN_FILES, *own_code(), *foreign, *(file.name for file in weight_files(directory))}
    for file in (directory / name for name in sorted(names)):
        if os.path.lexists(file):
            if not stat.S_ISREG(file.lstat().st_mode):
                raise ValueError(f"'{file}' is a link or no file: register a copy of the directory (`cp -rL`)")
            (target / file.relative_to(directory)).parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(file, target / file.relative_to(directory))
    write_mlflow_model(tree)
    return tree


def _refuse_another_champion(settings: Settings, name: str, manifest: Manifest, replaces: str) -> None:
    """Before anything is measured; `promote` asks again."""
    current = model_registry.champion(settings, name)
    found = current.version if current else ""
    if found != replaces and not (current and current.manifest.sha256 == manifest.sha256):
        raise PromotionConflict(
            f"champion of '{name}' is version {found or 'none'}, to be replaced was version {replaces or 'none'}: "
            "say --replaces VERSION with the champion whose place the model shall take, or register it without "
            "--alias champion"
        )


def _known(settings: Settings, name: str, manifest: Manifest) -> ModelVersion | None:
    versions = model_registry.list_versions(settings, name)
    return next((v for v in versions if v.lineage.source and v.manifest.sha256 == manifest.sha256), None)


def _measure_and_register(
    settings: Settings,
    name: str,
    model: HybridLM,
    manifest: Manifest,
    recipe: RunConfig,
    tokenizer: Path,
    directory: Path,
) -> str:
    with mlflow_runs.open_run(settings, f"register {directory.name}", tags={"step": STEP}) as mlflow_run:
        own = recipe.model_copy(update={"data": recipe.data.model_copy(update={"tokenizer": str(tokenizer)})})
        store, events = ObjectStore(settings), Events.from_env(STEP, STEP)
        context = StepContext(STEP, own, settings, store, mlflow_run, events, inputs={}, parameters={})
        quality, facts = _measure(context, model)
        dataset = context.outputs["dataset"]
        headline = quality.headline()
        context.publish_json("evaluation", quality.files(), headline | {"dataset_sha256": dataset.sha256})
        measured = {"perplexity": headline["test/perplexity"], "dataset_sha256": dataset.sha256}
        measured |= {"full_perplexity": headline.get(BEFORE_ROUNDING)}
        return model_registry.register(
            settings,
            name,
            manifest.model_copy(update={"metadata": facts}),
            settings.parent_run_id or mlflow_run.run_id,
            MeasuredModel.model_validate(facts | measured | {"sha256": manifest.sha256}).model_dump(),
            {"recipe": recipe.name, "architecture": facts["operators"], "directory": str(directory.resolve())},
            Lineage(
                evaluation=context.outputs["evaluation"],
                data=(dataset,),
                config_digest=digest(recipe.model_dump(mode="json")),
                commit=commit() or "",
                metrics=headline,
                latency_ms={facts["device"]: facts["latency_ms"]},
                source=IMPORTED,
            ),
        )


def _measure(context: StepContext, model: HybridLM) -> tuple[Evaluation, dict[str, Any]]:
    """The evaluation, and what `export_model` says of a model; publishes `dataset`."""
    recipe = context.config
    kernels.configure(recipe.kernels)
    kernels.preflight(pick_device(recipe.profiling.device))
    with context.scratch() as directory:
        summary = prepare_dataset(recipe.data, recipe.seed, directory, context.store.client)
        manifest = context.publish("dataset", directory, summary.model_dump(mode="json"))
    context.mlflow_run.log_dataset(recipe.data.source, manifest.uri, manifest.sha256)
    context.events.emit("progress", result_of(summary)["summary"])
    dataset = context.fetch_manifest(context.outputs["dataset"])
    TokenLoader(dataset, "train", recipe.training.sequence_length, 1, recipe.seed)  # raises if too short to be replayed
    norms = torch.cat([norm.float() for norm in weight_norms(model, recipe.training.weight_norm_axes).values()])
    facts = measure(context, model) | {
        "dtype": str(model.embedding.weight.dtype).removeprefix("torch."),
        "weight_norm": "on" if has_unit_rows(norms.min().item(), norms.max().item()) else "off",
    }
    context.events.emit("progress", f"{facts['latency_ms']:.4g} ms/token, weight norm {facts['weight_norm']}")
    quality = evaluate_served(for_evaluation(model, recipe), recipe.profiling.weights, dataset, recipe)
    numbers = {key: value for key, value in (quality.results | facts).items() if isinstance(value, int | float)}
    context.mlflow_run.log_metrics(numbers, step=0)
    return quality, facts


def _result(version: ModelVersion, is_new: bool) -> dict[str, Any]:
    return {
        "model": version.name,
        "version": version.version,
        "aliases": version.aliases,
        "new": is_new,
        **{key: version.facts[key] for key in ("perplexity", "latency_ms", "parameters", "device")},
        "weight_norm": version.manifest.metadata["weight_norm"],
        "dataset": version.lineage.data[0].uri,
        "object": version.uri,
        "sha256": version.manifest.sha256,
    }

"""run_step before any service is needed: its errors, and the identity of a step's work."""

import gc
import logging
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from flashslm.config import KernelsConfig, RunConfig, TrainingConfig, from_step_json
from flashslm.config.training import EXECUTION_SETTINGS
from flashslm.infra import outages
from flashslm.infra.events import Events
from flashslm.infra.process.collection import collection_held
from flashslm.infra.settings import SettingsError
from flashslm.infra.storage.object_store import Manifest
from flashslm.infra.tracking.mlflow_client import MlflowUnavailable
from flashslm.ops import kernels
from flashslm.steps import run as run_module
from flashslm.steps.context import StepContext
from flashslm.steps.run import run_step


def manifest(content: str) -> Manifest:
    sha256 = content * 64
    return Manifest(kind="dataset", uri=f"s3://bucket/cas/{sha256}", sha256=sha256, bytes=1)


def make_context(**changes: Any) -> StepContext:
    recipe = RunConfig.model_validate({"name": "x"} | changes.pop("recipe", {}))
    nothing: Any = None
    context = StepContext(
        step="pretrain",
        config=from_step_json("pretrain", recipe.for_step("pretrain")),
        settings=nothing,
        store=nothing,
        mlflow_run=nothing,
        events=Events("pretrain", "pretrain", None),
        inputs={"dataset": manifest("a"), "architecture": manifest("b")},
        parameters={"code_digest": "code"},
    )
    return replace(context, **changes)


def test_unknown_step_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"step 'pretrian' is unknown; allowed: check_recipe, .*pretrain"):
        run_step("pretrian", config="{}")


def test_missing_environment_names_every_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL_S3", "MLFLOW_TRACKING_URI"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(SettingsError, match=r"(?s)AWS_ENDPOINT_URL_S3: missing.*MLFLOW_TRACKING_URI: missing"):
        run_step("gate", config=RunConfig(name="x").for_step("gate"))


class Recorder:
    """What a step tells its MLflow run."""

    def __init__(self) -> None:
        self.tags: dict[str, str] = {}

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log_params(self, params: dict[str, Any]) -> None: ...

    def log_result(self, result: dict[str, float]) -> None: ...


def run_with_kernels(monkeypatch: pytest.MonkeyPatch, **setting: str) -> dict[str, str]:
    """Run a pretrain step that only asks for a kernel; the tags of its run."""
    step = SimpleNamespace(run=lambda context: {"form": kernels.chosen("ssd", "cuda", "bfloat16")})
    monkeypatch.setattr(run_module.importlib, "import_module", lambda name: step)
    recorder: Any = Recorder()
    settings: Any = SimpleNamespace(tracking_uri="", patience_s=0)
    run_module._execute(make_context(mlflow_run=recorder, settings=settings, recipe={"kernels": setting}), {})
    kernels.configure(KernelsConfig())
    return recorder.tags


def test_garbage_is_collected_from_the_steps_own_beginning_on(monkeypatch: pytest.MonkeyPatch) -> None:
    collects: list[bool] = []
    step = SimpleNamespace(run=lambda context: collects.append(gc.isenabled()) or {})
    monkeypatch.setattr(run_module.importlib, "import_module", lambda name: step)
    with collection_held():
        collects.append(gc.isenabled())
        run_module._work(make_context(settings=SimpleNamespace(tracking_uri="", patience_s=0)))
    gc.unfreeze()
    assert collects == [False, True]


@pytest.mark.parametrize(
    ("step", "device"),
    [("profile_latency", "cpu"), ("search_architecture", "auto"), ("fit_scaling_law", "auto"), ("pretrain", "auto")],
)
def test_proxies_are_trained_elsewhere_than_latency_is_measured(step: str, device: str) -> None:
    """`export_model` measures latency too, and needs no device of proxies."""
    config = RunConfig.model_validate({"name": "x", "profiling": {"device": "cpu", "proxy_device": "auto"}})
    assert run_module._device(step, config) == device
    assert run_module._device("export_model", config) == "cpu"
    assert RunConfig.model_validate({"name": "x", "profiling": {"device": "cpu"}}).profiling.training_device == "cpu"


def test_the_recipe_decides_the_kernels_and_the_run_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_with_kernels(monkeypatch, ssd="chunked")["kernel.ssd/cuda/bfloat16"] == "chunked"
    assert run_with_kernels(monkeypatch, default="torch")["kernel.ssd/cuda/bfloat16"] == "chunked"


def test_a_form_that_cannot_run_here_fails_before_the_step_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flashslm.hardware.pick_device", lambda wanted: "cpu")
    with pytest.raises(kernels.MissingKernel, match="runs on cuda, the tensors are on cpu"):
        run_with_kernels(monkeypatch, delta_rule="fla")
    kernels.configure(KernelsConfig())


def registry_away(monkeypatch: pytest.MonkeyPatch, times: int, patience_s: int) -> dict[str, Any]:
    """The result of a step whose registry does not answer so many times."""
    left = [MlflowUnavailable("MLflow does not answer")] * times

    def run(context: StepContext) -> dict[str, Any]:
        if left:
            raise left.pop()
        return {"summary": "promoted"}

    monkeypatch.setattr(run_module.importlib, "import_module", lambda name: SimpleNamespace(run=run))
    monkeypatch.setattr(outages, "_SHORTEST_PAUSE_S", 0.01)
    settings: Any = SimpleNamespace(tracking_uri="http://mlflow:5000", patience_s=patience_s)
    return run_module._work(make_context(settings=settings))


def test_a_step_waits_for_the_model_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    assert registry_away(monkeypatch, 5, patience_s=60) == {"summary": "promoted"}
    with pytest.raises(MlflowUnavailable):
        registry_away(monkeypatch, 1, patience_s=0)


def test_run_key_is_the_identity_of_the_work() -> None:
    key = make_context().run_key(seed="0")
    assert key == make_context().run_key(seed="0")
    others = [
        make_context().run_key(seed="1"),
        make_context(recipe={"training": {"steps": 7}}).run_key(seed="0"),
        make_context(inputs={"dataset": manifest("c"), "architecture": manifest("b")}).run_key(seed="0"),
        make_context(parameters={"code_digest": "other"}).run_key(seed="0"),
    ]
    assert len({key, *others}) == 5


def test_a_run_goes_on_with_other_settings_of_its_execution() -> None:
    """Also with further variants, so that a seed more costs one training; what its numbers depend on is another run."""
    stages = [{"from_step": 5, "sequence_length": 16, "micro_batch_size": 2}]
    key = make_context(recipe={"training": {"stages": stages}}).run_key()
    same: list[dict[str, Any]] = [
        {"processes": 2, "shard_processes": 1, "gradient_sync": "each", "micro_batch_per_process": True},
        {"micro_batch_size": 8, "stages": [stages[0] | {"micro_batch_size": 4}], "activation_checkpointing": "on"},
        {"threads": 3, "cuda_graph": "on", "checkpoint_every_steps": 7, "keep_checkpoints": 5, "max_skipped_steps": 0},
        {"seeds": [0, 1], "weight_norm": ["on"], "deploy": "on", "deploy_seed": 1},
    ]
    for training in same:
        assert make_context(recipe={"training": {"stages": stages} | training}).run_key() == key, training
    assert set().union(*same) - {"stages"} == EXECUTION_SETTINGS <= set(TrainingConfig.model_fields)
    for other in ({"batch_size": 8}, {"precision": "float32"}, {"stages": [stages[0] | {"batch_size": 4}]}):
        assert make_context(recipe={"training": {"stages": stages} | other}).run_key() != key, other


def test_run_key_ignores_sections_the_step_does_not_read() -> None:
    assert make_context(recipe={"gate": {"max_perplexity": 3}}).run_key() == make_context().run_key()


def test_a_steps_log_has_other_libraries_warnings_alone() -> None:
    root, other, own = (logging.getLogger(name) for name in (None, "lm_eval.tasks", "flashslm.steps.x"))
    before = root.level
    root.setLevel(logging.INFO)  # as KFP's executor does
    try:
        run_module._log_to_stderr()
        enabled = [logger.isEnabledFor(logging.INFO) for logger in (other, own)]
        assert enabled == [False, True] and other.isEnabledFor(logging.WARNING)
    finally:
        root.setLevel(before)

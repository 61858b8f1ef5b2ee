"""A checkout with one small pipeline, `retraining`: two steps whose names and arguments are real ones."""

import sys
from pathlib import Path

import pytest

SOURCE = """
from kfp import dsl


@dsl.component(base_image="runtime", install_kfp_package=False)
def prepare_data(config: str, code_digest: str, source_digest: str) -> str:
    from flashslm.steps.run import run_step

    return run_step("prepare_data", config=config, parameters={"code_digest": code_digest})["decision"]


@dsl.component(base_image="runtime", install_kfp_package=False)
def evaluate(config: str, code_digest: str, data: str) -> str:
    from flashslm.steps.run import run_step

    return run_step("evaluate", config=config, parameters={"code_digest": code_digest})["decision"]


@dsl.pipeline(name="retraining")
def retraining(prepare_data_config: str, evaluate_config: str, code_digest: str, source_digest: str):
    data = prepare_data(config=prepare_data_config, code_digest=code_digest, source_digest=source_digest).set_retry(1)
    data.set_caching_options(CACHED)
    evaluate(config=evaluate_config, code_digest=code_digest, data=data.output).set_retry(1)
"""


def enter_checkout(directory: Path, monkeypatch: pytest.MonkeyPatch, cached: bool = False) -> Path:
    """Make `directory` the project the commands run in; `cached` says whether its data step may be cached."""
    (directory / "components").mkdir(parents=True)
    (directory / "pipelines" / "retraining").mkdir(parents=True)
    source = SOURCE.replace("CACHED", str(cached))
    (directory / "pipelines" / "retraining" / "pipeline.py").write_text(source, encoding="utf-8")
    (directory / "toy.yaml").write_text("name: toy\n", encoding="utf-8")
    monkeypatch.chdir(directory)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in [name for name in sys.modules if name.startswith("pipelines.retraining")]:
        monkeypatch.delitem(sys.modules, name)
    return directory

"""A checkout with one small pipeline, `retraining`: two steps whose names and arguments are real ones."""

import sys
from pathlib import Path

import pytest

SOURCE = """
from kfp import dsl


@dsl.component(base_image="runtime", install_kfp_package=False)
def prepare_data(seed: int, data: dict, code_digest: str, source_digest: str) -> str:
    from flashslm.steps.component import run_component

    return run_component("prepare_data", locals())["decision"]


@dsl.component(base_image="runtime", install_kfp_package=False)
def evaluate(
    seed: int,
    kernels: dict,
    profiling: dict,
    training: dict,
    evaluation_config: dict,
    export: dict,
    code_digest: str,
    text: str,
) -> str:
    from flashslm.steps.component import run_component

    return run_component("evaluate", locals())["decision"]


@dsl.pipeline(name="retraining")
def retraining(
    seed: int,
    data: dict,
    kernels: dict,
    profiling: dict,
    training: dict,
    evaluation: dict,
    export: dict,
    code_digest: str,
    source_digest: str,
):
    prepared = prepare_data(seed=seed, data=data, code_digest=code_digest, source_digest=source_digest)
    prepared.set_retry(1).set_caching_options(CACHED)
    evaluate(
        seed=seed,
        kernels=kernels,
        profiling=profiling,
        training=training,
        evaluation_config=evaluation,
        export=export,
        code_digest=code_digest,
        text=prepared.output,
    ).set_retry(1)
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

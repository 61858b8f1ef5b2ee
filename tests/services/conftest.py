"""The real embedded S3 and MLflow, started once a session on free ports and stopped whatever happens."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from flashslm.infra.storage.object_store import ObjectStore


@pytest.fixture(scope="session")
def stack_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The home of a running stack. A test that stops a half of it calls `up(stack_home)` before it ends."""
    home = tmp_path_factory.mktemp("stack")
    try:
        embedded_stack.up(home)
        yield home
    finally:
        embedded_stack.down(home)


@pytest.fixture(scope="session")
def settings(stack_home: Path) -> Settings:
    """The settings of the session's stack."""
    found = embedded_stack.settings_of(stack_home)
    assert found is not None
    return found


@pytest.fixture(scope="session")
def store(settings: Settings) -> ObjectStore:
    """The object store of the session's stack."""
    return ObjectStore(settings)


@pytest.fixture
def platform_env(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """The environment contract set for this process and its children, with a spool of its own."""
    for name, value in settings.as_env().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FLASHSLM_SPOOL", str(tmp_path / "spool"))
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    return settings

"""An engine, a base and the images, made once a session; `make test-containers` asks for them, `make test` does not."""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.containers import build, engine
from tests.containers.engine import Engine

WANTED = "FLASHSLM_TEST_CONTAINERS"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "containers: starts a container engine and builds images")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(WANTED):
        return
    for item in items:
        if item.get_closest_marker("containers"):
            item.add_marker(pytest.mark.skip(reason="containers: make test-containers runs it"))


@pytest.fixture(scope="session")
def workshop() -> Iterator[Path]:
    """A directory for gigabytes: pytest's own keep those of three sessions."""
    with tempfile.TemporaryDirectory(prefix="flashslm-containers-", ignore_cleanup_errors=True) as directory:
        Path(directory).chmod(0o755)  # steps, another user, go through it
        yield Path(directory)


@pytest.fixture(scope="session")
def containers(workshop: Path) -> Iterator[Engine]:
    """A running engine, gone after the session with all its images."""
    started = engine.start(workshop / "engine")
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def base(containers: Engine, workshop: Path) -> str:
    return build.stand_in_base(containers, workshop / "base")


@pytest.fixture(scope="session")
def wheels(workshop: Path) -> Path:
    return build.wheelhouse(workshop / "wheels")


@pytest.fixture(scope="session")
def runtime(containers: Engine, base: str, wheels: Path) -> str:
    return build.image(containers, "runtime", base, wheels)


@pytest.fixture(scope="session")
def cuda(containers: Engine, runtime: str, base: str, wheels: Path) -> str:
    """After the CPU image, whose layers it shares where torch is the CPU's."""
    return build.image(containers, "cuda", base, wheels)


@pytest.fixture(scope="session")
def tensorrt_llm(containers: Engine, base: str, wheels: Path) -> str:
    return build.image(containers, "tensorrt-llm", base, wheels)

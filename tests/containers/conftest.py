"""An engine, a base and the images, made once a session; `make test-containers` asks for them, `make test` does not."""

import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Never

import pytest

from flashslm.infra.settings import Settings
from flashslm.infra.stack import embedded_stack
from tests.containers import engine
from tests.containers.build import Builds, check_python
from tests.containers.engine import Engine, NoEngine
from tests.containers.workshop import STACK, name_of, workshop

WANTED = "FLASHSLM_TEST_CONTAINERS"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "containers: starts a container engine and builds images")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if os.environ.get(WANTED):
        return
    for item in items:
        if item.get_closest_marker("containers"):
            item.add_marker(pytest.mark.skip(reason="containers: make test-containers runs it"))


@contextmanager
def needed() -> Iterator[None]:
    """What is missing here is said once, and not by every test."""
    try:
        yield
    except NoEngine as error:
        pytest.exit(f"make test-containers cannot run here: {error}", returncode=1)


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """Gigabytes go here: pytest's own directories keep those of three sessions."""

    def interrupt(*_: object) -> Never:
        raise KeyboardInterrupt  # which runs the fixtures' ends

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    with needed():
        engine.check_machine()
        check_python()
    with workshop() as made:
        yield made


@pytest.fixture(scope="session")
def containers(directory: Path) -> Iterator[Engine]:
    """A running engine, gone after the session with all its images."""
    with needed():
        engine.check_disk(directory.parent)
        started = engine.start(directory / "engine", name_of(directory))
    try:
        yield started
    finally:
        started.stop()


@pytest.fixture(scope="session")
def builds(
    containers: Engine, directory: Path, record_testsuite_property: Callable[[str, object], None]
) -> Iterator[Builds]:
    """The images; what they took goes into the report of `--junitxml`."""
    used_bytes = shutil.disk_usage(directory).used
    begun = Builds(containers, directory)
    try:
        yield begun
        disk_bytes = shutil.disk_usage(directory).used - used_bytes
        facts = {"seconds": begun.seconds, "size_bytes": begun.size_bytes(), "disk_bytes": disk_bytes}
        record_testsuite_property("images", json.dumps(facts))
    finally:
        begun.close()


@pytest.fixture(scope="session")
def settings(builds: Builds, directory: Path) -> Iterator[Settings]:
    """The embedded S3 and MLflow, which come up while the first image is built."""
    home = directory / STACK
    try:
        yield embedded_stack.up(home)
    finally:
        embedded_stack.down(home)


@pytest.fixture(scope="session")
def runtime(settings: Settings, builds: Builds) -> str:
    return builds.name("runtime")


@pytest.fixture(scope="session")
def cuda(builds: Builds) -> str:
    return builds.name("cuda")


@pytest.fixture(scope="session")
def tensorrt_llm(builds: Builds) -> str:
    return builds.name("tensorrt-llm")

"""For all tests: no garbage collection walks what test modules and the libraries they import have made."""

from collections.abc import Generator

import pytest

from flashslm.infra.process.collection import collection_held


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with collection_held():
        return (yield)

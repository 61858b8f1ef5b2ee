"""For all tests: no garbage collection walks what test modules and the libraries they import have made, and Ctrl-C does
what it does by default, also where the tests run in the background of a shell, which lets its processes ignore it.
"""

import signal
from collections.abc import Generator, Iterator

import pytest

from flashslm.infra.process.collection import collection_held

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    with collection_held():
        return (yield)


@pytest.fixture
def hang_up_ends() -> Iterator[None]:
    """What SIGHUP does by default, also where the tests run under nohup: processes inherit it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)

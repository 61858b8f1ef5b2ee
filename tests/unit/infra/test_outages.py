"""How a caller waits for a service that is away, and what is said meanwhile."""

import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from flashslm.infra import outages
from flashslm.infra.outages import Wait
from flashslm.infra.process.interrupts import Terminated, terminable
from tests.waiting import wait_until

SERVICE, WHERE = "object store", "http://s3:8333"


@pytest.fixture
def said() -> Iterator[list[tuple[str, str]]]:
    """What is said."""
    heard: list[tuple[str, str]] = []
    with outages.heard_by(lambda kind, sentence: heard.append((kind, sentence))):
        yield heard


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds since some moment, which pass while a caller sleeps and only then."""
    now_s = [1000.0]

    def sleep(seconds: float) -> None:
        now_s[0] += seconds

    monkeypatch.setattr(outages, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    monkeypatch.setattr(Wait, "_sleep", staticmethod(sleep))
    return now_s


def fail_for(seconds: float, wait: Wait, clock: list[float]) -> bool:
    """Try for so long without success; whether the caller was to go on trying."""
    until_s = clock[0] + seconds
    while clock[0] < until_s:
        if not wait.pause("refused"):
            return False
    return True


def test_an_outage_is_said_once_then_again_and_its_end_too(said: list[tuple[str, str]], clock: list[float]) -> None:
    with Wait(SERVICE, WHERE, 900.0) as wait:
        assert fail_for(150.0, wait, clock)
    sentences = [sentence for _, sentence in said]
    assert len(sentences) == 4 and {kind for kind, _ in said} == {SERVICE}
    assert sentences[0] == f"{SERVICE} at {WHERE} has been away for 6 s; waiting up to 900 s (refused)"
    assert "answers again at" in sentences[-1] and sentences[-1].endswith(f"after {clock[0] - 1000.0:.0f} s")
    assert not any("answers again" in sentence for sentence in sentences[:-1])


@pytest.mark.usefixtures("clock")
def test_one_failed_try_is_no_outage(said: list[tuple[str, str]]) -> None:
    with Wait(SERVICE, WHERE, 900.0) as wait:
        assert wait.pause("refused")
    assert said == []


def test_threads_that_wait_for_one_service_say_it_together(said: list[tuple[str, str]], clock: list[float]) -> None:
    together = threading.Barrier(8)

    def call() -> None:
        with Wait(SERVICE, WHERE, 900.0) as wait:
            assert wait.pause("refused")
            together.wait(60)
            assert fail_for(5.0, wait, clock)
            together.wait(60)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2 and "has been away" in said[0][1] and "answers again" in said[1][1]


def test_patience_ends(said: list[tuple[str, str]], clock: list[float]) -> None:
    wait = Wait(SERVICE, WHERE, 30.0)
    assert not fail_for(60.0, wait, clock)
    assert clock[0] == pytest.approx(1030.0)
    assert len(said) == 1 and "answers again" not in said[0][1]
    assert not Wait(SERVICE, WHERE, 0.0).pause("refused"), "no patience, no pause"


def test_sigterm_ends_the_wait_of_every_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_LIMIT_WHILE_STOPPING_S", 0.0)
    gave_up = threading.Event()

    def wait_without_end() -> None:
        with Wait(SERVICE, WHERE, 900.0) as wait:
            while wait.pause("refused"):
                pass
            gave_up.set()

    def ask() -> None:
        wait_until(lambda: outages._outages[SERVICE, WHERE]._waiting == 2)
        os.kill(os.getpid(), signal.SIGTERM)

    threads = [threading.Thread(target=work) for work in (wait_without_end, ask)]
    with pytest.raises(Terminated), terminable():
        try:
            outages._outages[SERVICE, WHERE] = outages._Outage()
            for thread in threads:
                thread.start()
            wait_without_end()
        finally:
            assert gave_up.wait(60.0), "a thread waits for 900 s"
    for thread in threads:
        thread.join()
    assert Wait(SERVICE, WHERE, 900.0).pause("refused"), "the request is over with its block"

"""How a caller waits for a service that is away, and what is said meanwhile."""

import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from flashslm.infra import outages
from flashslm.infra.outages import Wait
from flashslm.infra.process.interrupts import Terminated, terminable

SERVICE, WHERE = "object store", "http://s3:8333"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[str, str]]]:
    """What is said, with a tenth of a second for five, and three tenths for a minute."""
    monkeypatch.setattr(outages, "_FIRST_SAID_AFTER_S", 0.1)
    monkeypatch.setattr(outages, "_SAID_EVERY_S", 0.3)
    monkeypatch.setattr(outages, "_LONGEST_PAUSE_S", 0.05)
    monkeypatch.setattr(outages, "_SHORTEST_PAUSE_S", 0.01)
    heard: list[tuple[str, str]] = []
    with outages.heard_by(lambda kind, sentence: heard.append((kind, sentence))):
        yield heard


def fail_for(seconds: float, wait: Wait) -> bool:
    """Try for so long without success; whether the caller was to go on trying."""
    until_s = time.monotonic() + seconds
    while time.monotonic() < until_s:
        if not wait.pause("refused"):
            return False
    return True


def test_an_outage_is_said_once_then_again_and_its_end_too(said: list[tuple[str, str]]) -> None:
    with Wait(SERVICE, WHERE, 900.0) as wait:
        assert fail_for(0.8, wait)
    sentences = [sentence for _, sentence in said]
    assert 3 <= len(sentences) <= 4 and {kind for kind, _ in said} == {SERVICE}
    assert sentences[0] == f"{SERVICE} at {WHERE} has been away for 0 s; waiting up to 900 s (refused)"
    assert "answers again at" in sentences[-1] and sentences[-1].endswith("after 1 s")
    assert not any("answers again" in sentence for sentence in sentences[:-1])


def test_one_failed_try_is_no_outage(said: list[tuple[str, str]]) -> None:
    with Wait(SERVICE, WHERE, 900.0) as wait:
        assert wait.pause("refused")
    assert said == []


def test_threads_that_wait_for_one_service_say_it_together(said: list[tuple[str, str]]) -> None:
    def call() -> None:
        with Wait(SERVICE, WHERE, 900.0) as wait:
            assert fail_for(0.25, wait)

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(said) == 2 and "has been away" in said[0][1] and "answers again" in said[1][1]


def test_patience_ends(said: list[tuple[str, str]]) -> None:
    started_s, wait = time.monotonic(), Wait(SERVICE, WHERE, 0.3)
    assert not fail_for(60.0, wait)
    assert 0.25 < time.monotonic() - started_s < 5.0
    assert len(said) == 1 and "answers again" not in said[0][1]
    assert not Wait(SERVICE, WHERE, 0.0).pause("refused"), "no patience, no pause"


def test_sigterm_ends_the_wait_of_every_thread(said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outages, "_LIMIT_WHILE_STOPPING_S", 0.0)
    gave_up = threading.Event()

    def call() -> None:
        with Wait(SERVICE, WHERE, 900.0) as wait:
            if not fail_for(60.0, wait):
                gave_up.set()

    thread = threading.Thread(target=call)
    with pytest.raises(Terminated), terminable():
        thread.start()
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        try:
            with Wait(SERVICE, WHERE, 900.0) as wait:
                fail_for(60.0, wait)
        finally:
            assert gave_up.wait(10.0), "a thread waits for 900 s"
    thread.join()
    assert Wait(SERVICE, WHERE, 900.0).pause("refused"), "the request is over with its block"

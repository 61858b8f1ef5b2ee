"""A process that is asked to end while it waits for an object store without end."""

import subprocess
import sys

import pytest

from tests.unit.infra.tracking.test_mlflow_client import hanging_server, server

# What hangs here is left when the store has been asked five times: one that answers is not given up.
SCRIPT = """
import signal, sys, threading
from flashslm.infra.settings import Settings
from flashslm.infra.storage import hanging
from flashslm.training.runtime import end_as_request
hanging._LOOK_EVERY_S, hanging._ANSWERS_WITHIN_S, hanging._UNANSWERED_S = 0.05, *map(float, sys.argv[2:])
answers, asked, enough = hanging._answers, [], threading.Event()

def counted(client, bucket):
    asked.append(answers(client, bucket))
    if len(asked) == 5:
        enough.set()
    return asked[-1]

hanging._answers = counted
settings = Settings(access_key="k", secret_key="s", endpoint_url=sys.argv[1], bucket="b", tracking_uri="http://x")
with hanging.ended_in_time(settings, lambda: print("given up", flush=True)):
    with end_as_request():
        signal.raise_signal(signal.SIGTERM)
        enough.wait()
        print("done", asked, flush=True)
"""


def ended(address: str, within_s: float, unanswered_s: float) -> tuple[int, str]:
    command = [sys.executable, "-c", SCRIPT, address, str(within_s), str(unanswered_s)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=False)
    return done.returncode, done.stdout


def test_a_store_that_does_not_answer_is_left() -> None:
    with hanging_server() as (address, _):
        assert ended(address, 0.5, 0.8) == (143, "given up\n")


def test_one_that_refuses_is_left_to_those_who_wait_for_it() -> None:
    assert ended("http://127.0.0.1:1", 60.0, 900.0) == (143, f"done {[False] * 5}\n")


@pytest.mark.parametrize("status", [200, 403, 503])
def test_a_store_that_answers_is_waited_for(status: int) -> None:
    with server(status, "") as (address, _):
        assert ended(address, 60.0, 900.0) == (143, f"done {[True] * 5}\n")

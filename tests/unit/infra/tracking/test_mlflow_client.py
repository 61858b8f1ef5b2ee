"""The client against servers of the tests' own: away, hanging, failing, refusing."""

import json
import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from flashslm.infra.process.interrupts import Terminated, end_stop_request, request_stop, terminable
from flashslm.infra.settings import Settings
from flashslm.infra.tracking import mlflow_client, mlflow_runs, spool
from flashslm.infra.tracking.mlflow_client import MlflowError, MlflowUnavailable, TrackingClient
from tests.waiting import wait_until

AWAY = "http://127.0.0.1:1"
ATTEMPTS = 2
RUN = {"run": {"info": {"run_id": "7", "experiment_id": "1", "status": "RUNNING"}, "data": {}}}


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the client sets in this process is undone after each test."""
    for name in (*mlflow_client._WAITS, *os.environ):
        if name.startswith(("MLFLOW_", "FLASHSLM_TRACKING_", "AWS_MAX")):
            monkeypatch.setenv(name, "")  # so that the former value is put back
            monkeypatch.delenv(name)
    for name in ("TOKEN", "USERNAME", "PASSWORD"):
        monkeypatch.setenv(f"MLFLOW_TRACKING_{name}", "")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    monkeypatch.setenv("FLASHSLM_SPOOL", str(tmp_path / "spool"))


def settings(uri: str) -> Settings:
    return Settings(access_key="k", secret_key="s", endpoint_url="http://x", bucket="b", tracking_uri=uri)


@contextmanager
def server(status: int, body: str) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """One that answers every request alike; its address, and the headers of what it got."""
    seen: list[dict[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            seen.append(dict(self.headers))
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        do_GET = do_POST = answer

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        thread = Thread(target=running.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", seen
        finally:
            running.shutdown()
            thread.join()


@contextmanager
def hanging_server() -> Iterator[tuple[str, list[socket.socket]]]:
    """One that takes every connection and never answers."""
    connections: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    connections.append(listener.accept()[0])
                except OSError:  # closed
                    return

        thread = Thread(target=accept)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", connections
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in connections:
                connection.close()


def test_only_a_server_will_do() -> None:
    with pytest.raises(ValueError, match=r"'sqlite:///x.db'.*flashslm stack up"):
        TrackingClient(settings("sqlite:///x.db"))


def test_an_absent_server_is_unavailable() -> None:
    with pytest.raises(MlflowUnavailable, match=r"http://127.0.0.1:1 does not answer.*flashslm stack status"):
        TrackingClient(settings(AWAY)).get_run("x")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (503, "<html>", MlflowUnavailable, "does not answer"),
        (429, "{}", MlflowUnavailable, "does not answer"),
        (500, '{"error_code": "INTERNAL_ERROR", "message": "the database is away"}', MlflowUnavailable, "not answer"),
        (400, '{"error_code": "INVALID_PARAMETER_VALUE", "message": "no such"}', MlflowError, "_VALUE.* no such"),
        (401, "<html>", MlflowError, "MLFLOW_TRACKING_TOKEN"),
        (403, '{"error_code": "PERMISSION_DENIED"}', MlflowError, "MLFLOW_TRACKING_TOKEN"),
        (200, "<html>", MlflowError, "is MLFLOW_TRACKING_URI an MLflow server"),
    ],
)
def test_a_failure_says_what_and_why(status: int, body: str, kind: type[Exception], words: str) -> None:
    with server(status, body) as (uri, _), pytest.raises(MlflowError, match=words) as caught:
        TrackingClient(settings(uri)).get_run("x")
    assert type(caught.value) is kind
    assert status != 400 or caught.value.code == "INVALID_PARAMETER_VALUE"


@pytest.mark.parametrize(("method", "arguments", "times"), [("get_run", ("x",), 2), ("create_run", ("1",), 1)])
def test_what_must_not_happen_twice_is_sent_once(method: str, arguments: tuple[str], times: int) -> None:
    with server(503, "") as (uri, seen), pytest.raises(MlflowUnavailable):
        getattr(TrackingClient(settings(uri)), method)(*arguments)
    assert len(seen) == times


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({}, None),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, "Bearer t"),
        ({"MLFLOW_TRACKING_USERNAME": "u", "MLFLOW_TRACKING_PASSWORD": "p"}, "Basic dTpw"),
        ({"FLASHSLM_TRACKING_TOKEN": "own", "MLFLOW_TRACKING_TOKEN": "t"}, "Bearer own"),
        (
            {
                "FLASHSLM_TRACKING_TOKEN": "own",
                "MLFLOW_TRACKING_USERNAME": "of the plug-in",
                "MLFLOW_TRACKING_PASSWORD": "p",
            },
            "Bearer own",
        ),
        (
            {
                "FLASHSLM_TRACKING_USERNAME": "u",
                "FLASHSLM_TRACKING_PASSWORD": "p",
                "MLFLOW_TRACKING_TOKEN": "of the plug-in",
            },
            "Basic dTpw",
        ),
    ],
)
def test_a_pods_own_credentials_come_first(
    env: dict[str, str], expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with server(200, json.dumps(RUN)) as (uri, seen):
        assert TrackingClient(settings(uri)).get_run("7").info.run_id == "7"
    assert [headers.get("Authorization") for headers in seen] == [expected]


def run_a_step(uri: str) -> list[str]:
    """A step that logs; returns the lines of its spool file."""
    with mlflow_runs.open_run(settings(uri), "step", params={"lr": 1}) as run:
        for step in range(5):
            run.log_metrics({"loss": float(step)}, step)
            run.set_tags({f"tag{step}": "x"})
    (file,) = Path(os.environ["FLASHSLM_SPOOL"]).glob("*.jsonl")
    return file.read_text().splitlines()


def test_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """Stdout belongs to `--json`: MLflow's client would print addresses at the end of a run."""
    with server(200, json.dumps(RUN)) as (uri, _):
        TrackingClient(settings(uri)).set_terminated("7", "FINISHED")
    assert capsys.readouterr().out == ""


def test_a_server_that_is_away_costs_a_step_nothing() -> None:
    entries = [spool.Entry.model_validate_json(line) for line in run_a_step(AWAY)[1:]]
    assert sum(len(entry.metrics) for entry in entries) == 5 and entries[-1].status == "FINISHED"
    assert {tag for entry in entries for tag in entry.tags} == {f"tag{step}" for step in range(5)}


def test_a_step_waits_for_a_hanging_server_at_its_start_and_its_end_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    monkeypatch.setattr(mlflow_runs, "_RETRY_AFTER_S", 900.0)  # a step that is slow, or its end, tries no oftener
    with hanging_server() as (uri, connections):
        assert len(run_a_step(uri)) > 5
        assert len(connections) <= 2 * ATTEMPTS, "the twelve things that were logged did not wait one by one"


def test_a_request_waits_for_half_a_minute_at_most() -> None:
    waits = mlflow_client._WAITS
    assert waits[mlflow_client._RETRIES] == "0" and ATTEMPTS * int(waits[mlflow_client._TIMEOUT]) <= 30


def test_a_process_that_is_to_end_asks_a_hanging_server_once_and_for_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlflow_client, "_TIMEOUT_WHILE_STOPPING", "1")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "900")
    with hanging_server() as (uri, connections), pytest.raises(Terminated), terminable():
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            with pytest.raises(MlflowUnavailable):
                TrackingClient(settings(uri)).get_run("x")
            assert len(connections) == 1
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "900"


def test_a_request_that_the_request_to_end_overtakes_is_not_sent_again() -> None:
    def overtake() -> None:
        wait_until(lambda: connections)
        request_stop(signal.SIGTERM)
        connections[0].close()

    with hanging_server() as (uri, connections):
        thread = Thread(target=overtake)
        thread.start()
        with pytest.raises(MlflowUnavailable):
            TrackingClient(settings(uri)).get_run("x")
        thread.join()
        end_stop_request()
        assert len(connections) == 1

"""Requests, and options of the command, that are refused: what the answer says."""

import asyncio
import json
import shutil
import signal
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from starlette.requests import Request
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.inference.continuous import ContinuousBatch
from flashslm.serving.app import MAX_BODY_BYTES, _read
from flashslm.serving.protocol import ApiError, ChatRequest, parse
from tests.unit.serving.client import Client
from tests.unit.serving.conftest import served

BAD = [
    ({"prompt": None}, "prompt: Field required", "prompt"),
    ({"prompt": []}, "prompt: expected one prompt", "prompt"),
    ({"prompt": ["a", "b"]}, "several are several requests", "prompt"),
    ({"prompt": [1, -2]}, "prompt: expected one prompt", "prompt"),
    ({"prompt": [1, 270]}, "prompt has token 270: below 270 is allowed", "prompt"),
    ({"n": 2}, "n is 2: only 1 is supported", None),
    ({"echo": True, "best_of": 3}, "best_of is 3: only 1 is supported; echo is True: only False is supported", None),
    ({"presence_penalty": 0.5}, "presence_penalty is 0.5: only 0 is supported", None),
    ({"temperature": -1}, "temperature: Input should be greater than or equal to 0", "temperature"),
    ({"temperature": "1"}, "temperature: Input should be a valid number", "temperature"),
    ({"top_p": 0}, "top_p: Input should be greater than 0", "top_p"),
    ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1", "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens: Input should be a valid integer", "max_tokens"),
    ({"stop": ""}, "stop.0: String should have at least 1 character", "stop"),
    ({"stop": list("abcde")}, "stop: List should have at most 4 items", "stop"),
    ({"logprobs": 6}, "logprobs: Input should be less than or equal to 5", "logprobs"),
    ({"seed": 2**70}, "seed: Input should be", "seed"),
    ({"stream": "yes"}, "stream: Input should be a valid boolean", "stream"),
    ({"temprature": 1}, "temprature is not supported", "temprature"),
    ({"max_tokens": 9000}, "the prompt has 2 tokens and 9000 are to follow: at most 8187 fit", None),
]


@pytest.mark.parametrize(("settings", "message", "param"), BAD, ids=lambda value: str(value)[:40])
def test_bad_input_gets_400_with_every_problem(client: Client, settings: Any, message: str, param: str | None) -> None:
    answer = client.complete(**({"prompt": "a"} | settings))
    assert answer.status == 400, answer.body
    error = answer.body["error"]
    assert message in error["message"] and error["param"] == param and error["type"] == "invalid_request_error"


def test_two_problems_come_in_one_message(client: Client) -> None:
    message = client.complete("a", temperature=9, max_tokens=0).body["error"]["message"]
    assert message.count("Input should be") == 2


@pytest.mark.parametrize("settings", [{"n": 1, "user": "me", "logit_bias": {}, "presence_penalty": 0.0, "stop": None}])
def test_what_changes_nothing_is_taken(client: Client, settings: Any) -> None:
    assert client.complete("a", max_tokens=1, **settings).status == 200


@pytest.mark.parametrize(
    ("body", "message"), [(b"{", "Invalid JSON"), (b"[]", "should be an object"), (b"\xff", "JSON")]
)
def test_a_body_that_is_no_request(client: Client, body: bytes, message: str) -> None:
    answer = client.call("POST", "/v1/completions", body)
    assert answer.status == 400 and message in answer.body["error"]["message"]


def test_a_page_of_another_site_cannot_use_the_server(client: Client) -> None:
    """It may send plain text anywhere, or reach this machine under a name of its own."""
    request = json.dumps(client.request("a", max_tokens=1)).encode()
    assert client.call("POST", "/v1/completions", request, **{"Content-Type": "text/plain"}).status == 415
    assert client.call("GET", "/v1/models", None, Host="rebound.example").status == 400
    for host in ("localhost:80", "127.0.0.1", "[::1]:80"):
        assert client.call("GET", "/v1/models", None, Host=host).status == 200


def test_another_address_of_this_machine_is_answered(directory: Path) -> None:
    with served(directory, "--host", "127.0.0.2") as (there, _):
        assert there.get("/v1/models").status == 200
        assert there.call("GET", "/v1/models", None, Host="rebound.example").status == 400


def test_too_large_a_body_is_refused(client: Client) -> None:
    body = b'{"prompt": "' + b"a" * MAX_BODY_BYTES + b'"}'
    assert client.call("POST", "/v1/completions", body).status == 413
    assert client.get("/health").status == 200


@pytest.mark.parametrize(
    "settings",
    [
        {"messages": [1] * 100_000},
        {"messages": [{"role": "user", "content": [1] * 100_000}]},
        {"messages": [{"role": "user", "content": "a"} | {f"x{number}": 0 for number in range(100_000)}]},
        {f"x{number}": 0 for number in range(100_000)},
    ],
    ids=["messages", "parts", "fields of a message", "fields"],
)
def test_many_problems_get_a_short_answer(settings: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user", "content": "a"}]} | settings
    with pytest.raises(ApiError) as refusal:
        parse(ChatRequest, json.dumps(body).encode())
    assert refusal.value.status == 400 and 20 < len(str(refusal.value)) < 500


def test_a_model_of_another_name(client: Client) -> None:
    answer = client.complete("a", model="gpt")
    assert answer.status == 404 and "model 'gpt' is not served here: 'm' is" in answer.body["error"]["message"]


def test_chat_without_a_template(client: Client) -> None:
    answer = client.chat("hi")
    assert answer.status == 400 and "has no chat template" in answer.body["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role: Input should be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
            "messages.0.content.0.type",
        ),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true"),
        ({"tools": [{"type": "function"}]}, "tools is [{'type': 'function'}]: only [] is supported"),
    ],
)
def test_chat_requests_that_are_refused(client: Client, settings: Any, message: str) -> None:
    answer = client.chat("hi", **settings)
    assert answer.status == 400 and message in answer.body["error"]["message"]


def refused(*arguments: Any) -> str:
    result = CliRunner().invoke(app, ["serve", *map(str, arguments)])
    assert result.exit_code == 1
    return str(result.exception)


def test_a_method_that_a_path_does_not_take(client: Client) -> None:
    answer = client.get("/v1/completions")
    assert answer.status == 405 and answer.headers["allow"] == "POST"
    assert answer.body["error"]["code"] == "not_served"


def test_an_error_of_the_servers_own_has_the_form_of_the_others(directory: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(directory, tmp_path / "model")
    (copy / "chat_template.jinja").write_text("{{ messages[0].content + 1 }}")
    with served(copy, "--max-batch-size", "1") as (client, _):
        answer = client.chat("a")
        assert answer.status == 500 and answer.body["error"]["message"] == "the server failed: TypeError"
        assert answer.body["error"]["type"] == "server_error"
        assert client.metric('flashslm_requests_refused_total{status="500"}') == 1
        assert client.complete("a", max_tokens=1).status == 200


def test_another_address_needs_a_key(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FLASHSLM_API_KEY", raising=False)
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        assert "set FLASHSLM_API_KEY" in refused(directory, "--host", host)


def test_a_port_that_is_taken(directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1, port {port}" in refused(directory, "--port", port)


def test_what_is_no_model_and_what_does_not_fit(directory: Path, tmp_path: Path) -> None:
    assert "is not a model: give a run's directory" in refused(tmp_path, "--port", 0)
    assert "--max-context is 8188: allowed are 2 to 8187" in refused(directory, "--port", 0, "--max-context", 8188)


def test_a_server_that_has_no_memory_for_its_first_step(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(ContinuousBatch, "generate", lack)
    assert "8 rows of 8187 tokens do not fit" in refused(directory, "--port", 0)


def test_more_rows_than_memory_holds(directory: Path) -> None:
    assert f"{10**12} rows of 8187 tokens do not fit" in refused(directory, "--port", 0, "--max-batch-size", 10**12)


def test_a_signal_that_comes_before_the_server_listens(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    stops = []

    def run(server: uvicorn.Server, sockets: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        stops.append(server.should_exit)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    try:
        assert CliRunner().invoke(app, ["serve", str(directory), "--port", "0"]).exit_code == 0
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert stops == [True]


def test_a_client_that_goes_away_within_its_body() -> None:
    async def receive() -> dict[str, str]:
        return {"type": "http.disconnect"}

    request = Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)
    with pytest.raises(ApiError, match="went away before the end of its body") as refusal:
        asyncio.run(_read(request))
    assert refusal.value.status == 499


def test_a_number_that_no_float_holds_does_not_stop_the_engine(client: Client) -> None:
    assert client.complete("a", max_tokens=2, temperature=1, top_k=10**400).status == 200
    assert client.get("/health").status == 200

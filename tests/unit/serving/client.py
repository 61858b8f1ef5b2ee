"""A plain HTTP client, so that a test sees what is sent and may go away in the middle of it."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection, HTTPResponse
from typing import Any, NamedTuple
from urllib.parse import urlsplit

JSON = {"Content-Type": "application/json"}


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]


class Client:
    def __init__(self, url: str, model: str = "m", headers: dict[str, str] | None = None) -> None:
        self.address, self.model, self.headers = urlsplit(url).netloc, model, headers or {}

    @contextmanager
    def open(self, method: str, path: str, body: Any = None, **headers: str) -> Iterator[HTTPResponse]:
        """A response whose body has not been read; leaving the block closes the connection."""
        connection = HTTPConnection(self.address, timeout=120)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            connection.request(method, path, data, JSON | self.headers | headers)
            yield connection.getresponse()
        finally:
            connection.close()

    def call(self, method: str, path: str, body: Any = None, **headers: str) -> Answer:
        with self.open(method, path, body, **headers) as response:
            content = response.read()
            kind = response.headers.get("content-type", "")
            return Answer(
                response.status, json.loads(content) if "json" in kind else content.decode(), dict(response.headers)
            )

    def get(self, path: str) -> Answer:
        return self.call("GET", path)

    def complete(self, prompt: Any, **settings: Any) -> Answer:
        return self.call("POST", "/v1/completions", self.request(prompt, **settings))

    def chat(self, *contents: Any, **settings: Any) -> Answer:
        messages = [{"role": "user", "content": content} for content in contents]
        return self.call("POST", "/v1/chat/completions", {"model": self.model, "messages": messages} | settings)

    def request(self, prompt: Any, **settings: Any) -> dict[str, Any]:
        return {"model": self.model, "prompt": prompt, "temperature": 0} | settings

    def stream(self, prompt: Any, **settings: Any) -> Iterator[Any]:
        """The chunks of a completion."""
        with self.open("POST", "/v1/completions", self.request(prompt, stream=True, **settings)) as response:
            yield from chunks(response)

    def metric(self, name: str) -> float:
        """A sample of /metrics by its name and labels as they are written; 0 if it is not there."""
        lines = (line.rpartition(" ") for line in self.get("/metrics").body.splitlines())
        return next((float(value) for sample, _, value in lines if sample == name), 0.0)


def chunks(response: HTTPResponse) -> Iterator[Any]:
    """Server-sent events up to [DONE], which must come."""
    assert (response.status, response.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
    for line in response:
        if line == b"data: [DONE]\n":
            return
        if line.strip():
            assert line.startswith(b"data: ")
            yield json.loads(line.removeprefix(b"data: "))
    raise AssertionError("the stream ended without [DONE]")


def text_of(stream: Iterator[Any]) -> str:
    return "".join(chunk["choices"][0]["text"] for chunk in stream if chunk["choices"])

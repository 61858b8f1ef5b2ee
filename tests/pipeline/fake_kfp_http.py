"""The HTTP side of the fake KFP: requests, bodies by the models of kfp_server_api, and faults."""

import email
import json
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import kfp_server_api as api

if TYPE_CHECKING:
    from tests.pipeline.fake_kfp import FakeKfp

PREFIX = "/apis/v2beta1"
_CODEC = api.ApiClient(api.Configuration())


class Text(str):
    """An answer that is not JSON."""


class Refused(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str):
        super().__init__(message)
        self.status = status


@dataclass
class Fault:
    """What happens to the next `times` requests that match. `kind`: a status, or one of the words in `Handler`."""

    method: str
    path: str
    kind: int | str
    times: int = 1
    headers: dict[str, str] = field(default_factory=dict)


def read(kind: str, body: Any) -> Any:
    """JSON to model; an unknown field is refused."""
    model = _CODEC._ApiClient__deserialize(body, kind)
    if (unknown := _unknown(body, _CODEC.sanitize_for_serialization(model))) != []:
        raise Refused(400, f"{kind} has no {', '.join(unknown)}")
    return model


def _unknown(given: Any, known: Any, where: str = "") -> list[str]:
    if isinstance(given, dict) and isinstance(known, dict):
        lost = [f"{where}{key}" for key in given if key not in known]
        return lost + [u for key in given if key in known for u in _unknown(given[key], known[key], f"{where}{key}.")]
    return []


class Handler(BaseHTTPRequestHandler):
    """One request. Faults: "cut" ends the connection unheard, "cut_after" when the work is done, "slow" answers late,
    "html" and "login" are what a gateway says to an unknown user.
    """

    fake: "FakeKfp"
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_DELETE = do_GET

    def _serve(self) -> None:
        parts = urlsplit(self.path)
        body = self._body()
        self.fake.requests.append(f"{self.command} {parts.path.removeprefix(PREFIX)}")
        fault = self.fake.fault_for(self.command, parts.path)
        kind = fault.kind if fault else ""
        if kind == "slow":
            self.fake.slow.wait(300)
        if kind == "cut":
            self.close_connection = True
            return
        if kind in ("html", "login") or isinstance(kind, int):
            self._send_fault(kind, fault.headers if fault else {})
            return
        status, answer = self._answer(parts.path, {k: v[0] for k, v in parse_qs(parts.query).items()}, body)
        if kind == "cut_after":
            self.close_connection = True
            return
        if isinstance(answer, Text):
            self._send(status, answer.encode(), {"Content-Type": "text/plain"})
            return
        self._send(status, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer(self, path: str, query: dict[str, str], body: Any) -> tuple[int, Any]:
        try:
            if self.fake.token and self.headers.get("authorization") != f"Bearer {self.fake.token}":
                raise Refused(401, "Unauthenticated: the token is not valid")
            answer = self.fake.answer(self.command, path, query, body)
            return 200, answer if isinstance(answer, Text) else _CODEC.sanitize_for_serialization(answer)
        except Refused as error:
            return error.status, {"error": str(error), "code": 3, "message": str(error), "details": []}

    def _body(self) -> Any:
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        kind = self.headers.get("Content-Type", "")
        if kind.startswith("multipart/"):
            (part,) = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + raw).get_payload()
            assert part.get_param("name", header="Content-Disposition") == "uploadfile"
            return part.get_payload(decode=True)
        return json.loads(raw) if raw else None

    def _send_fault(self, kind: int | str, headers: dict[str, str]) -> None:
        if kind == "html":
            self._send(200, b"<html>please log in</html>", {"Content-Type": "text/html"})
        elif kind == "login":
            self._send(302, b"", {"Location": "https://idp.example/auth"})
        else:
            body = json.dumps({"error": "set to fail", "message": "set to fail"}).encode()
            self._send(int(kind), body, {"Content-Type": "application/json"} | headers)

    def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(body))}).items():
            self.send_header(name, value)
        with suppress(BrokenPipeError):  # whoever asked has given up
            self.end_headers()
            self.wfile.write(body)

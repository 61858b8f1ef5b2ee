"""The promotion hook: a command and a signed webhook, each when it works and when it does not."""

import hashlib
import hmac
import json
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from pydantic import ValidationError

from flashslm.config import PromotionHook
from flashslm.infra.registry.hook import DELIVERY_HEADER, SIGNATURE_HEADER, call_hook, sign

KEY = {"FLASHSLM_HOOK_SECRET": "key"}
EVENT = {"event": "promotion", "version": "7"}


class Server(ThreadingHTTPServer):
    """Answers with `statuses` in turn and keeps the messages whose signature is right."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.statuses: list[int] = [200]
        self.accepted: list[tuple[str, dict[str, object]]] = []
        self.calls = 0
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?token=hidden"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.calls += 1
        self.server.may_answer.wait(300)
        wanted = "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()
        status = self.server.statuses[min(self.server.calls, len(self.server.statuses)) - 1]
        if not hmac.compare_digest(wanted, self.headers[SIGNATURE_HEADER]):
            status = 401
        elif status < 300:
            self.server.accepted.append((self.headers[DELIVERY_HEADER], json.loads(body)))
        self.send_response(status)
        self.send_header("Location", "/elsewhere")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield made
        made.shutdown()


def deliver(hook: PromotionHook, environ: dict[str, str] | None = None) -> tuple[str, list[float]]:
    """What came of it, and the pauses before further attempts."""
    pauses: list[float] = []
    return call_hook(hook, EVENT, KEY if environ is None else environ, pauses.append), pauses


def test_signature_is_the_published_hmac() -> None:
    """RFC 4231, test case 2."""
    mac = "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    assert sign("Jefe", b"what do ya want for nothing?") == f"sha256={mac}"


def test_no_hook_does_nothing() -> None:
    assert deliver(PromotionHook()) == ("", [])


def test_a_signed_message_arrives_with_its_time(server: Server) -> None:
    outcome, pauses = deliver(PromotionHook(url=server.url))
    assert (outcome, pauses) == ("delivered in attempt 1: 127.0.0.1 answered 200", [])
    ((_, message),) = server.accepted
    assert abs(time.time() - float(str(message.pop("sent_s")))) < 60 and message == EVENT


def test_a_busy_server_is_asked_again_with_the_same_delivery(server: Server) -> None:
    server.statuses = [503, 429, 204]
    outcome, pauses = deliver(PromotionHook(url=server.url))
    assert outcome == "delivered in attempt 3: 127.0.0.1 answered 204" and pauses == [0.5, 1.0]
    assert len(server.accepted) == 1


@pytest.mark.parametrize(("status", "calls"), [(500, 3), (404, 1), (302, 1)])
def test_a_refusal_is_told_and_only_a_passing_one_is_repeated(server: Server, status: int, calls: int) -> None:
    server.statuses = [status]
    assert deliver(PromotionHook(url=server.url))[0] == f"failed in attempt {calls} of 3: 127.0.0.1 answered {status}"
    assert server.calls == calls and not server.accepted


def test_a_wrong_key_is_refused_by_the_receiver(server: Server) -> None:
    outcome, _ = deliver(PromotionHook(url=server.url, secret_variable="OTHER"), {"OTHER": "wrong"})
    assert outcome == "failed in attempt 1 of 3: 127.0.0.1 answered 401" and not server.accepted


def test_without_a_key_nothing_is_sent(server: Server) -> None:
    outcome, _ = deliver(PromotionHook(url=server.url), {})
    assert "$FLASHSLM_HOOK_SECRET is empty" in outcome and server.calls == 0


def test_a_slow_and_an_absent_server_fail_without_telling_the_address(server: Server) -> None:
    server.may_answer.clear()
    hook = PromotionHook(url=server.url, timeout_s=0.1, attempts=1)
    assert deliver(hook)[0] == "failed in attempt 1 of 1: 127.0.0.1: ReadTimeoutError"
    server.may_answer.set()
    absent = PromotionHook(url="http://127.0.0.1:1/hook?token=hidden", attempts=2)
    assert deliver(absent)[0] == "failed in attempt 2 of 2: 127.0.0.1: NewConnectionError"


def python(code: str) -> tuple[str, ...]:
    return (sys.executable, "-c", code)


def test_a_command_gets_the_event_on_its_standard_input(tmp_path: Path) -> None:
    file = tmp_path / "seen.json"
    code = f"import sys; open({str(file)!r}, 'w').write(sys.stdin.read())"
    assert deliver(PromotionHook(command=python(code)), {})[0].startswith("delivered in attempt 1: ")
    assert json.loads(file.read_text())["version"] == "7"


def test_a_failing_command_is_told_with_its_last_words() -> None:
    outcome, pauses = deliver(
        PromotionHook(command=python("import sys; print('no disk'); sys.exit(3)"), attempts=2), {}
    )
    assert outcome == f"failed in attempt 2 of 2: {sys.executable} exited with 3: no disk" and pauses == [0.5]
    outcome, _ = deliver(PromotionHook(command=("/no/such/command",)), {})
    assert outcome.startswith("failed in attempt 1 of 3: /no/such/command: ")
    slow = PromotionHook(command=python("import time; time.sleep(600)"), timeout_s=0.2, attempts=1)
    assert deliver(slow, {})[0].endswith("took longer than 0.2 s")


def test_a_token_among_a_commands_last_words_is_not_kept() -> None:
    code = "import sys; print('posting to https://hooks.slack.com/services/T0/B0/xyz failed'); sys.exit(1)"
    outcome, _ = deliver(PromotionHook(command=python(code), attempts=1), {})
    assert "xyz" not in outcome and outcome.endswith(" failed")


def test_an_address_that_only_the_environment_has(server: Server) -> None:
    written = PromotionHook.model_validate(PromotionHook(url=server.url).model_dump(mode="json"))
    assert deliver(written, KEY | {"FLASHSLM_HOOK_URL": server.url})[0].startswith("delivered")
    assert deliver(written)[0].startswith("failed in attempt 1 of 3: $FLASHSLM_HOOK_URL is empty")


def test_one_of_command_and_webhook() -> None:
    with pytest.raises(ValidationError, match="choose one"):
        PromotionHook(command=("true",), url="http://x")
    with pytest.raises(ValidationError, match="url"):
        PromotionHook(url="ftp://x")

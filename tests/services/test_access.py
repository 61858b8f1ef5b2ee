"""Every port on which the running stack listens, tried without its credentials."""

import contextlib
import http.client
import json
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from flashslm.infra.stack import daemons, embedded_stack, seaweedfs
from flashslm.infra.stack.certificates import CERTIFICATE, KEY, ensure_certificates
from flashslm.infra.storage.object_store import ObjectStore
from tests.waiting import modes, wait_until

pytestmark = pytest.mark.services

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # preface and an empty SETTINGS frame
PLANTED = "schedules/planted.json"
REQUESTS = [
    ("GET", "/"),
    ("GET", "/flashslm"),
    ("GET", "/buckets/flashslm/?pretty=y"),
    ("GET", "/dir/assign"),
    ("GET", "/dir/status"),
    ("GET", "/vol/grow?count=1"),
    ("GET", "/cluster/status"),
    ("GET", "/metrics"),
    ("GET", "/ui/index.html"),
    ("GET", "/debug/pprof/"),
    ("PUT", f"/flashslm/{PLANTED}"),
    ("PUT", f"/buckets/flashslm/{PLANTED}"),
    ("POST", f"/buckets/flashslm/{PLANTED}"),
    ("POST", "/submit"),
    ("POST", "/1,01637037d6"),
    ("DELETE", "/buckets/flashslm/?recursive=true"),
    ("DELETE", "/flashslm"),
    ("OPTIONS", f"/buckets/flashslm/{PLANTED}"),
    ("OPTIONS", f"/flashslm/{PLANTED}"),
]


def listening(home: Path, service: str) -> dict[int, str]:
    """Every TCP port of a service's processes, and the address it is bound to."""
    return {
        connection.laddr.port: connection.laddr.ip
        for process in daemons.marked(f"{service}@{home.resolve()}")
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }


def parts_ports(home: Path) -> set[int]:
    numbers = json.loads((home / "stack.json").read_text())["ports"]
    return {numbers[part] + offset for part in seaweedfs.PARTS for offset in (0, daemons.GRPC_OFFSET)}


@pytest.fixture(autouse=True)
def every_part_listens(stack_home: Path) -> None:
    """S3 takes puts a moment before the last part listens: a port that is not there yet would refuse everybody."""
    wait_until(lambda: parts_ports(stack_home) <= listening(stack_home, "s3").keys())


def unix_sockets(home: Path) -> list[Path]:
    names = {
        connection.laddr
        for process in daemons.marked(f"s3@{home.resolve()}")
        for connection in process.net_connections("unix")
        if connection.laddr.endswith(".sock")
    }
    return [Path(name) for name in sorted(names)]


@pytest.fixture(scope="module")
def strangers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ssl.SSLContext | None]:
    """Who comes without credentials: plain HTTP, TLS without a certificate, TLS with that of another authority."""
    bare, other = ssl._create_unverified_context(), ssl._create_unverified_context()
    files = ensure_certificates(tmp_path_factory.mktemp("other"))
    other.load_cert_chain(files / CERTIFICATE, files / KEY)
    return {"plain": None, "without certificate": bare, "other certificate": other}


def connect(port: int, context: ssl.SSLContext | None, timeout_s: float = 5.0) -> socket.socket:
    plain = socket.create_connection(("127.0.0.1", port), timeout_s)
    return context.wrap_socket(plain) if context else plain


def answer(connection: socket.socket, method: str, path: str) -> tuple[int, bytes, str]:
    """Status, body and allowed origin of one request; status 0 where the connection is refused or closed."""
    client = http.client.HTTPConnection("127.0.0.1")
    client.sock = connection
    try:
        headers = {"Origin": "http://attacker.test", "Access-Control-Request-Method": "PUT"}
        client.request(method, path, body=b'{"planted": 1}' if method in ("PUT", "POST") else None, headers=headers)
        reply = client.getresponse()
        return reply.status, reply.read(), reply.headers.get("Access-Control-Allow-Origin", "")
    except (OSError, http.client.HTTPException):
        return 0, b"", ""
    finally:
        client.close()


def tried(ports: dict[int, str], strangers: dict[str, ssl.SSLContext | None]) -> Iterator[tuple[str, int, bytes, str]]:
    for port in ports:
        for name, context in strangers.items():
            for method, path in REQUESTS:
                with contextlib.suppress(OSError):  # the handshake failed
                    yield f"{port} {name}: {method} {path}", *answer(connect(port, context), method, path)


def test_no_port_of_the_store_answers_without_credentials(stack_home, store, strangers):
    store.put_json("kept.json", {"n": 1})
    ports = listening(stack_home, "s3")
    numbers = json.loads((stack_home / "stack.json").read_text())["ports"]
    assert set(ports) == parts_ports(stack_home) and set(ports.values()) == {"127.0.0.1"}
    answered = 0
    for request, status, body, origin in tried(ports, strangers):
        answered += bool(status)
        cors = f"{numbers['s3']} plain: OPTIONS" in request and status == 200 and not body  # it names no data
        assert cors or status in (0, 400, 401, 403, 404, 405), (request, status, body[:200])
        assert status != 400 or b"HTTP request to an HTTPS server" in body or b"<Error>" in body, (request, body[:200])
        # S3 names "*" with its refusals outside buckets; a page cannot sign, and such an answer holds nothing
        assert not origin or (request.startswith(f"{numbers['s3']} plain") and " /flashslm" not in request), request
    assert answered > len(REQUESTS)  # the requests did reach the servers
    assert PLANTED not in store.list("") and store.get_json("kept.json")[0] == {"n": 1}


def test_grpc_ports_take_no_call_without_the_homes_certificate(stack_home, strangers):
    numbers = json.loads((stack_home / "stack.json").read_text())["ports"]
    for part in seaweedfs.PARTS:
        for name, context in strangers.items():
            if context:
                context.set_alpn_protocols(["h2"])
            assert not _speaks_http2(numbers[part] + daemons.GRPC_OFFSET, context), (part, name)
    own = (
        ssl._create_unverified_context()
    )  # the same call with the home's certificate, so that the trial means something
    own.load_cert_chain(stack_home / "certificates" / CERTIFICATE, stack_home / "certificates" / KEY)
    own.set_alpn_protocols(["h2"])
    assert _speaks_http2(numbers["filer"] + daemons.GRPC_OFFSET, own, timeout_s=300.0)


def _speaks_http2(port: int, context: ssl.SSLContext | None, timeout_s: float = 5.0) -> bool:
    """Whether a server answers HTTP/2's preface with its SETTINGS, as gRPC does before any call."""
    try:
        with connect(port, context, timeout_s) as connection:
            return _answers_settings(connection, timeout_s)
    except OSError:
        return False


def _answers_settings(connection: socket.socket, timeout_s: float = 5.0) -> bool:
    connection.settimeout(timeout_s)
    connection.sendall(HTTP2)
    head = b""
    while len(head) < 9 and (more := connection.recv(9 - len(head))):
        head += more
    return len(head) == 9 and head[3] == 4  # a SETTINGS frame


def test_unix_sockets_of_the_store_are_the_owners_and_closed_too(stack_home):
    sockets = unix_sockets(stack_home)
    assert sockets
    for path in sockets:
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path
        for method, target in REQUESTS:
            connection = socket.socket(socket.AF_UNIX)
            connection.settimeout(5)
            connection.connect(str(path))
            status, body, _ = answer(connection, method, target)
            assert status in (0, 400, 401, 403, 404, 405) or (method == "OPTIONS" and not body), (path, target, status)
        if "-grpc-" in path.name:
            with socket.socket(socket.AF_UNIX) as connection, contextlib.suppress(OSError):
                connection.connect(str(path))
                assert not _answers_settings(connection), path


def test_a_page_of_another_origin_cannot_write_to_mlflow(stack_home, settings):
    (port,) = listening(stack_home, "mlflow")
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    body = json.dumps({"name": "planted"})
    headers = {"Origin": "http://attacker.test", "Content-Type": "text/plain"}
    client.request("POST", "/api/2.0/mlflow/registered-models/create", body, headers)
    assert client.getresponse().status == 403


def test_a_store_that_an_older_version_left_open_is_started_again_with_its_data(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o755)  # as such a version made it
    umask = os.umask(0)  # of a user whose files everybody may write
    try:
        settings = embedded_stack.up(home)
        made = {path: mode for path, mode in modes(home).items() if path.suffix != ".vif"}  # SeaweedFS sets theirs
        assert len(made) > 10 and [path for path, mode in made.items() if mode & 0o077] == []
        ObjectStore(settings).put_json("kept.json", {"n": 1})
        before = {service.name: service.pid for service in embedded_stack.status(home).services}
        for file in (home / "certificates").iterdir():
            file.unlink()
        (home / "certificates").rmdir()  # as a home was before there were certificates
        assert embedded_stack.up(home) == settings
        after = {service.name: service.pid for service in embedded_stack.status(home).services}
        assert after["s3"] != before["s3"] and after["mlflow"] == before["mlflow"]
        assert ObjectStore(settings).get_json("kept.json")[0] == {"n": 1}
    finally:
        os.umask(umask)
        embedded_stack.down(home)

"""The object store of overlays/local, started as its container is, and tried without credentials."""

import http.client
import os
import re
import ssl
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from flashslm.infra.settings import Settings
from flashslm.infra.stack import daemons, seaweedfs
from flashslm.infra.stack.certificates import AUTHORITY, CERTIFICATE, KEY, ensure_certificates
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.object_store import ObjectStore
from tests.manifests.rendering import find, pods, rendered

pytestmark = pytest.mark.services

JWT_KEYS = ["WEED_JWT_SIGNING_KEY", "WEED_JWT_SIGNING_READ_KEY"]
JWT_KEYS += ["WEED_JWT_FILER_SIGNING_KEY", "WEED_JWT_FILER_SIGNING_READ_KEY"]


@dataclass
class Store:
    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    settings: Settings

    def listening(self) -> set[int]:
        found = psutil.Process(self.process.pid).net_connections("tcp")
        return {c.laddr.port for c in found if c.status == psutil.CONN_LISTEN}


def configuration(directory: Path, certificates: Path) -> Path:
    """security.toml of the overlay with this machine's paths in place of the container's."""
    text = find(rendered("local"), "ConfigMap", "seaweedfs-security", "flashslm")["data"]["security.toml"]
    for mounted, file in (("ca.crt", AUTHORITY), ("tls.crt", CERTIFICATE), ("tls.key", KEY)):
        text = text.replace(f"/etc/seaweedfs/tls/{mounted}", str(certificates / file))
    assert "/etc/" not in text
    (directory / "security.toml").write_text(text)
    return directory


def container() -> dict[str, Any]:
    (pod,) = pods(find(rendered("local"), "StatefulSet", "seaweedfs", "flashslm"))
    (found,) = pod["spec"]["containers"]
    mounted = {mount["mountPath"] for mount in found["volumeMounts"]}
    assert {"/etc/seaweedfs/security.toml", "/etc/seaweedfs/tls"} <= mounted
    assert found["envFrom"] == [{"secretRef": {"name": "seaweedfs"}}]
    return dict(found)


def started(directory: Path) -> Store:
    (directory / "data").mkdir()
    ports = dict(zip(seaweedfs.PARTS, daemons.free_ports(len(seaweedfs.PARTS)), strict=True))
    arguments = [re.sub(r"^-dir=.*", f"-dir={directory / 'data'}", each) for each in container()["args"]]
    arguments = [each.replace("-ip.bind=0.0.0.0", "-ip.bind=127.0.0.1") for each in arguments]
    arguments = [each for each in arguments if not each.startswith("-s3.port=")]
    arguments += [f"-{part}.port={port}" for part, port in ports.items()]
    config = configuration(directory, ensure_certificates(directory / "tls"))
    command = [daemons.executable("weed", "local"), "-logtostderr=true", f"-config_dir={config}", *arguments]
    env = os.environ | {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    env |= {name: f"key {number}" for number, name in enumerate(JWT_KEYS)}
    with (directory / "log").open("wb") as log:
        process = subprocess.Popen(command, env=env, stdout=log, stderr=log, cwd=directory)
    settings = Settings(
        access_key="key",
        secret_key="secret",
        endpoint_url=f"http://127.0.0.1:{ports['s3']}",
        bucket="flashslm",
        tracking_uri="http://127.0.0.1:1",
    )
    return Store(process, ports, settings)


def stop(store: Store) -> None:
    store.process.terminate()
    store.process.wait(300)
    seaweedfs.remove_sockets(store.ports)


def accepts_put(store: Store) -> bool:
    """Whether a put works, with the keys and over the parts' TLS, before the server ends or five minutes are over."""
    deadline_s = time.monotonic() + 300
    while store.process.poll() is None and time.monotonic() < deadline_s:
        with suppress(StoreError):
            ObjectStore(store.settings, patience_s=0).put_json("kept.json", {"n": 1})
            return True
        time.sleep(0.2)
    return False


@pytest.fixture(scope="module")
def overlay(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    """A server that is up; one that ended, because another process took a port just then, is started once more."""
    for attempt in ("first", "second"):
        directory = tmp_path_factory.mktemp(attempt)
        store = started(directory)
        try:
            if accepts_put(store):
                yield store
                return
        finally:
            stop(store)
    pytest.fail(f"it does not come up; the end of its log:\n{(directory / 'log').read_text()[-2000:]}")


@pytest.fixture
def store(overlay: Store) -> ObjectStore:
    return ObjectStore(overlay.settings)


def test_the_secrets_of_the_example_are_those_that_the_server_reads() -> None:
    import yaml

    example = Path(__file__).parents[2] / "manifests" / "secrets.example.yaml"
    secrets = {d["metadata"]["name"]: set(d["stringData"]) for d in yaml.safe_load_all(example.read_text())}
    assert secrets["seaweedfs"] == set(JWT_KEYS) and secrets["seaweedfs-tls"] == {"ca.crt", "tls.crt", "tls.key"}


def test_no_port_answers_without_credentials(overlay: Store, store: ObjectStore) -> None:
    assert store.get_json("kept.json") is not None
    expected = {port + offset for port in overlay.ports.values() for offset in (0, daemons.GRPC_OFFSET)}
    deadline = time.monotonic() + 30
    while not overlay.listening() >= expected and time.monotonic() < deadline:  # gRPC listens a moment after HTTP
        time.sleep(0.1)
    assert overlay.listening() == expected
    for port in expected - {overlay.ports["s3"]}:
        for method, path in (("GET", "/"), ("GET", "/dir/assign"), ("POST", "/buckets/flashslm/planted.json")):
            client = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            try:
                client.request(method, path, body=b"{}" if method == "POST" else None)
                reply = client.getresponse()
                assert reply.status == 400 and b"HTTPS server" in reply.read(), (port, method, path)
            except (OSError, http.client.HTTPException):
                pass  # the port of gRPC closes
            finally:
                client.close()
        with pytest.raises((OSError, http.client.HTTPException)):  # TLS without the certificate
            bare = http.client.HTTPSConnection("127.0.0.1", port, timeout=10, context=ssl._create_unverified_context())
            bare.request("GET", "/dir/assign")
            bare.getresponse()
    anonymous = overlay.settings.model_copy(update={"access_key": "nobody", "secret_key": "x"})
    with pytest.raises(StoreError, match="refused access"):
        ObjectStore(anonymous).list("")
    assert store.list("") == ["kept.json"]

"""How the embedded object store is started, so that every port of it answers only with credentials.

SeaweedFS is one process with five parts, each with a port of HTTP and one of gRPC. S3 asks for the access key. The
other ports speak TLS and take only the client certificate of this home; signing keys close them a second time, and with
them the Unix sockets, on which there is no TLS. All of it travels by the environment, never by arguments.
"""

import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from flashslm.infra.stack import daemons
from flashslm.infra.stack.certificates import AUTHORITY, CERTIFICATE, KEY, ensure_certificates

CERTIFICATES = "certificates"  # of a home
PARTS = ("s3", "master", "volume", "filer", "admin")
_GRPC = ("master", "volume", "filer", "s3", "admin", "worker", "client", "msg_broker", "msg_agent", "mq")
_HTTPS = ("master", "volume", "filer", "admin", "client")
_JWT = ("signing", "signing_read", "filer_signing", "filer_signing_read")


def command(data: Path, bucket: str, ports: Mapping[str, int]) -> list[str]:
    """The command that serves `data`; `ports` holds one of HTTP per part, gRPC's is 10000 above it."""
    options = {f"{part}.port": ports[part] for part in PARTS} | {
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "bucket": bucket,
        "webdav": "false",
        "admin.ui": "false",
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 256,  # a bucket opens several volumes: many small ones fit a laptop's disk
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "s3.allowedOrigins": f"http://127.0.0.1:{ports['s3']}",  # no page of another origin may read an answer
        "filer.allowedOrigins": f"http://127.0.0.1:{ports['filer']}",
    }
    weed = [daemons.executable("weed", "local"), "-logtostderr=true", "mini"]
    return weed + [f"-{name}={value}" for name, value in options.items()]


def environment(access_key: str, secret_key: str, certificates: Path) -> dict[str, str]:
    """Keys and certificates of every part; without the first two the server is open to everybody."""
    files = {"cert": CERTIFICATE, "key": KEY}
    paths = {name: str(ensure_certificates(certificates) / file) for name, file in files.items()}
    authority = str(certificates / AUTHORITY)
    env = {"AWS_ACCESS_KEY_ID": access_key, "AWS_SECRET_ACCESS_KEY": secret_key, "WEED_GRPC_CA": authority}
    env |= {f"WEED_GRPC_{part}_{name}".upper(): path for part in _GRPC for name, path in paths.items()}
    for part in _HTTPS:
        env |= {f"WEED_HTTPS_{part}_{name}".upper(): path for name, path in (paths | {"ca": authority}).items()}
    env |= {f"WEED_JWT_{use}_KEY".upper(): _derived(secret_key, use) for use in _JWT}
    return env | {"WEED_HTTPS_CLIENT_ENABLED": "true"}


def _derived(secret_key: str, use: str) -> str:
    """A key of its own for each use, of the one secret that the home keeps."""
    return hmac.new(secret_key.encode(), f"seaweedfs {use}".encode(), hashlib.sha256).hexdigest()


def remove_sockets(ports: Mapping[str, int]) -> None:
    """Remove the Unix sockets that SeaweedFS makes in /tmp for its ports and leaves there."""
    for port in ports.values():
        for number in (port, port + daemons.GRPC_OFFSET):
            for socket in Path("/tmp").glob(f"seaweedfs-*-{number}.sock"):
                socket.unlink(missing_ok=True)

"""A small client of the Kubernetes API for a process that runs in a pod, with the pod's own service account."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_RETRIES = urllib3.Retry(
    total=6,
    backoff_factor=0.5,
    backoff_max=10,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)
_TIMEOUT = urllib3.Timeout(connect=5.0, read=30.0)


class KubernetesError(RuntimeError):
    """The API refused a request or did not answer after retries (`status` 0)."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Kubernetes:
    """Requests in one namespace. The token is read for every request, since the cluster replaces it every hour."""

    def __init__(self, url: str, directory: Path, retries: urllib3.Retry = _RETRIES):
        """`directory` is laid out as a pod's service account: token, namespace and, for https, ca.crt."""
        self.url, self._token = url.rstrip("/"), directory / "token"
        self.namespace = (directory / "namespace").read_text(encoding="utf-8").strip()
        authorities = directory / "ca.crt"
        self._pool = urllib3.PoolManager(
            ca_certs=str(authorities) if authorities.is_file() else None, timeout=_TIMEOUT, retries=retries
        )

    @classmethod
    def in_cluster(cls) -> "Kubernetes":
        """The API server of the cluster this pod runs in. Raises KubernetesError anywhere else."""
        host, port = (os.environ.get(f"KUBERNETES_SERVICE_{name}", "") for name in ("HOST", "PORT"))
        if not host or not (SERVICE_ACCOUNT / "token").is_file():
            raise KubernetesError(
                "this is not a pod with a service account: a TrainJob is created from a step that runs on a cluster; "
                "here set platform.nodes to 1"
            )
        host = f"[{host}]" if ":" in host else host
        return cls(f"https://{host}:{port or 443}", SERVICE_ACCOUNT)

    def request(self, method: str, path: str, body: Any = None, **query: str) -> dict[str, Any]:
        """Send JSON, get JSON. `path` starts after the namespace's own, see `resource`. Raises KubernetesError."""
        data = None if body is None else json.dumps(body).encode()
        headers = self._headers() | ({"Content-Type": "application/json"} if data else {})
        try:
            answer = self._pool.request(method, self._address(path, query), body=data, headers=headers)
        except urllib3.exceptions.HTTPError as error:
            raise KubernetesError(f"the Kubernetes API at {self.url} does not answer after retries: {error}") from error
        if answer.status >= 300:
            raise KubernetesError(f"{method} {path}: {_reason(answer)}", answer.status)
        return dict(json.loads(answer.data))

    def resource(self, group_version: str, plural: str, name: str = "") -> str:
        """The path of a namespaced resource; the core group is written "v1"."""
        root = "api" if group_version == "v1" else "apis"
        return f"/{root}/{group_version}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")

    def lines(self, path: str, silence_s: float, **query: str) -> Iterator[str]:
        """Lines of a streamed text until it ends, is cut off or is silent for `silence_s`; never half a line.

        Raises KubernetesError if the stream is refused.
        """
        timeout = urllib3.Timeout(connect=5.0, read=silence_s)
        address = self._address(path, query)
        rest = b""
        try:
            answer = self._pool.request(
                "GET", address, headers=self._headers(), preload_content=False, retries=False, timeout=timeout
            )
            if answer.status >= 300:
                raise KubernetesError(f"GET {path}: {_reason(answer)}", answer.status)
            for chunk in answer.stream(1 << 16):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
            if rest:
                yield rest.decode("utf-8", "replace")
        except urllib3.exceptions.HTTPError:
            return

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._token.read_text(encoding='utf-8').strip()}"}

    def _address(self, path: str, query: dict[str, str]) -> str:
        return f"{self.url}{path}" + (f"?{urlencode(query)}" if query else "")


def _reason(answer: urllib3.BaseHTTPResponse) -> str:
    """What a Status object says, or the start of any other answer."""
    text = answer.data.decode("utf-8", "replace")
    try:
        message = str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        message = text[:200]
    return f"{answer.status} {answer.reason or ''}: {message}"

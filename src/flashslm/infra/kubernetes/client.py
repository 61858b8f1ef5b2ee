"""The Kubernetes API for a process in a pod, through the official client with the pod's own service account."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import urllib3

from flashslm.infra.process.interrupts import stop_requested

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_TIMEOUT_S = (5.0, 30.0)  # to connect, and to read
_WHILE_STOPPING_S, _TRIES_WHILE_STOPPING = (2.0, 3.0), 3


class _Retry(urllib3.Retry):
    """A process that is asked to end has seconds: it gives up sooner."""

    def is_exhausted(self) -> bool:
        return super().is_exhausted() or (stop_requested() and len(self.history) >= _TRIES_WHILE_STOPPING)


_RETRIES = _Retry(
    total=6,
    backoff_factor=0.5,
    backoff_max=10,
    status_forcelist=(429, 500, 502, 503, 504),
    allowed_methods=None,
    raise_on_status=False,
)


class KubernetesError(RuntimeError):
    """The API refused a request or did not answer after retries (`status` 0)."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Kubernetes:
    """Custom objects of one kind, pods and their logs, in one namespace, as JSON. All methods raise KubernetesError."""

    def __init__(self, configuration: Any, namespace: str, retries: urllib3.Retry = _RETRIES):
        from kubernetes.client import ApiClient, CoreV1Api, CustomObjectsApi  # takes a second

        configuration.retries = retries
        api = ApiClient(configuration)
        self.host, self.namespace = configuration.host, namespace
        self._objects, self._core = CustomObjectsApi(api), CoreV1Api(api)

    @classmethod
    def in_cluster(cls) -> "Kubernetes":
        """The API server of the cluster this pod runs in; the client reads the token again each minute."""
        from kubernetes.client import Configuration
        from kubernetes.config import ConfigException, load_incluster_config

        configuration = Configuration()
        try:
            load_incluster_config(configuration)
            namespace = (SERVICE_ACCOUNT / "namespace").read_text(encoding="utf-8").strip()
        except (ConfigException, OSError) as error:
            raise KubernetesError(
                f"this is not a pod with a service account ({error}): a TrainJob is created from a step that runs on a "
                "cluster; here set platform.nodes to 1"
            ) from error
        return cls(configuration, namespace)

    def create(self, api_version: str, plural: str, manifest: dict[str, Any]) -> None:
        """Create a custom object."""
        self._custom("create", api_version, plural, manifest)

    def get(self, api_version: str, plural: str, name: str) -> dict[str, Any] | None:
        """A custom object; None if it is not there."""
        found: dict[str, Any] | None = self._custom("get", api_version, plural, name)
        return found

    def delete(self, api_version: str, plural: str, name: str, uid: str = "") -> None:
        """Delete a custom object after what it owns; nothing if it is not there. With `uid` no other object of that
        name is deleted: the status of the error is then 409."""
        options = {"propagationPolicy": "Foreground"} | ({"preconditions": {"uid": uid}} if uid else {})
        self._custom("delete", api_version, plural, name, body=options)

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """The pods that a label selector finds."""
        raw = {"_preload_content": False, "_request_timeout": _TIMEOUT_S}  # the models refuse pods of newer clusters
        with self._errors("list pods"):
            answer = self._core.list_namespaced_pod(self.namespace, label_selector=selector, **raw)
            return list(json.loads(answer.data)["items"])

    def log_lines(self, pod: str, silence_s: float, **options: Any) -> Iterator[str]:
        """Lines of a pod's log until it ends, is cut off or is silent for `silence_s`; never half a line.

        `options` are those of `read_namespaced_pod_log`.
        """
        from kubernetes.watch import Watch

        read, timeout_s = self._core.read_namespaced_pod_log, (_TIMEOUT_S[0], silence_s)
        with self._errors(f"read the log of {pod}", is_stream=True):
            yield from Watch().stream(read, pod, self.namespace, _request_timeout=timeout_s, **options)

    def _custom(self, verb: str, api_version: str, plural: str, *arguments: Any, **options: Any) -> Any:
        """The object; None if it is not there."""
        function = getattr(self._objects, f"{verb}_namespaced_custom_object")
        try:
            with self._errors(f"{verb} {plural}"):
                group, version = api_version.split("/")
                where = (group, version, self.namespace, plural)
                timeout_s = _WHILE_STOPPING_S if stop_requested() else _TIMEOUT_S
                return function(*where, *arguments, _request_timeout=timeout_s, **options)
        except KubernetesError as error:
            if error.status == 404 and verb != "create":
                return None
            raise

    @contextmanager
    def _errors(self, what: str, is_stream: bool = False) -> Iterator[None]:
        from kubernetes.client import ApiException

        try:
            yield
        except ApiException as error:
            raise KubernetesError(f"{what}: {error.status} {_reason(error)}", error.status or 0) from error
        except urllib3.exceptions.MaxRetryError as error:
            raise KubernetesError(f"the Kubernetes API at {self.host} does not answer: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            if not is_stream:  # one that was cut, or is silent
                raise KubernetesError(f"the Kubernetes API at {self.host} does not answer: {error}") from error


def _reason(error: Any) -> str:
    """What a Status object says, or the start of any other answer."""
    text = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        return f"{error.reason or ''}: {json.loads(text)['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.reason or ''}: {text[:200]}"

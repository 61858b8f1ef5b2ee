"""The Kubernetes API for a process in a pod, through the official client with the pod's own service account."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

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
_CONNECT_S, _READ_S = 5.0, 30.0


class KubernetesError(RuntimeError):
    """The API refused a request or did not answer after retries (`status` 0)."""

    def __init__(self, message: str, status: int = 0):
        super().__init__(message)
        self.status = status


class Kubernetes:
    """Custom objects of one kind, pods and their logs, in one namespace. All methods raise KubernetesError.

    Objects are JSON as it came: the official client's models refuse fields of newer clusters.
    """

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
        self._call(self._objects.create_namespaced_custom_object, *self._place(api_version, plural), manifest)

    def get(self, api_version: str, plural: str, name: str) -> dict[str, Any] | None:
        """A custom object; None if it is not there."""
        return self._found(self._objects.get_namespaced_custom_object, *self._place(api_version, plural), name)

    def delete(self, api_version: str, plural: str, name: str) -> None:
        """Delete a custom object after what it owns; nothing if it is not there."""
        delete = self._objects.delete_namespaced_custom_object
        self._found(delete, *self._place(api_version, plural), name, propagation_policy="Foreground")

    def pods(self, selector: str) -> list[dict[str, Any]]:
        """The pods that a label selector finds."""
        return list(self._call(self._core.list_namespaced_pod, self.namespace, label_selector=selector)["items"])

    def log_lines(self, pod: str, silence_s: float, **options: Any) -> Iterator[str]:
        """Lines of a pod's log until it ends, is cut off or is silent for `silence_s`; never half a line.

        `options` are those of `read_namespaced_pod_log`.
        """
        read, rest = self._core.read_namespaced_pod_log, b""
        answer = self._answer(read, pod, self.namespace, timeout_s=silence_s, **options)
        try:
            for chunk in answer.stream(1 << 16):
                *whole, rest = (rest + chunk).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in whole)
            if rest:
                yield rest.decode("utf-8", "replace")
        except urllib3.exceptions.HTTPError:
            return
        finally:
            answer.close()

    def _place(self, api_version: str, plural: str) -> tuple[str, str, str, str]:
        group, version = api_version.split("/")
        return group, version, self.namespace, plural

    def _found(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any] | None:
        try:
            return self._call(function, *arguments, **options)
        except KubernetesError as error:
            if error.status == 404:
                return None
            raise

    def _call(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> dict[str, Any]:
        return dict(json.loads(self._answer(function, *arguments, **options).data))

    def _answer(
        self, function: Callable[..., Any], *arguments: Any, timeout_s: float = _READ_S, **options: Any
    ) -> urllib3.HTTPResponse:
        from kubernetes.client import ApiException

        options |= {"_preload_content": False, "_request_timeout": (_CONNECT_S, timeout_s)}
        try:
            answer: urllib3.HTTPResponse = function(*arguments, **options)
        except ApiException as error:
            raise KubernetesError(f"{function.__name__}: {error.status} {_reason(error)}", error.status or 0) from error
        except urllib3.exceptions.HTTPError as error:
            raise KubernetesError(f"the Kubernetes API at {self.host} does not answer: {error}") from error
        return answer


def _reason(error: Any) -> str:
    """What a Status object says, or the start of any other answer."""
    text = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        return f"{error.reason or ''}: {json.loads(text)['message']}"
    except (ValueError, KeyError, TypeError):
        return f"{error.reason or ''}: {text[:200]}"

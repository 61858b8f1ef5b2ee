"""Calls to the KFP API (v2beta1) that outlast a busy server and a cut connection, with errors a person can act on.

The generated kfp_server_api is called directly: kfp.Client prints, keeps a context file in the home directory, retries
nothing, and cannot leave the version of a recurring run open.
"""

import json
import os
import random
import re
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from flashslm.launch.processes import LaunchError

T = TypeVar("T")

_BUSY = {429, 500, 502, 503, 504}
_LONGEST_WAIT_S = 30.0
_IN_CLUSTER_TOKEN = "/var/run/secrets/kubeflow/pipelines/token"  # where Kubeflow's PodDefault projects it
_HOW_TO_AUTHENTICATE = (
    "put a token into $FLASHSLM_KFP_TOKEN, or its file's name into $FLASHSLM_KFP_TOKEN_FILE, such as the one that "
    "`kubectl create token <service account> --namespace <namespace> --audience pipelines.kubeflow.org` prints"
)


class KfpError(LaunchError):
    """The KFP API refused a call; the message says why."""


class NotFound(KfpError):
    """The object does not exist."""


class Conflict(KfpError):
    """There is such an object already."""


class Unavailable(KfpError):
    """No answer, or one that asks to come back later: the call may or may not have had its effect."""

    def __init__(self, message: str, wait_s: float = 0.0):
        super().__init__(message)
        self.wait_s = wait_s


def address_of(host: str) -> str:
    """Where the API is: what a browser shows, its fragment left out; https unless the host says otherwise."""
    try:
        parts = urlsplit(host.strip() if "://" in host else f"https://{host.strip()}")
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.username is not None or re.search(r"\s", parts.netloc):
        shown = host.rpartition("@")[2]
        raise KfpError(
            f"host '{shown}' is not the address of a KFP API: give it as a browser shows it, "
            "such as https://kfp.example, without user and password"
        )
    return f"{parts.scheme}://{parts.netloc}{parts.path}".rstrip("/")


def token_from(environ: Mapping[str, str]) -> str:
    """The bearer token for KFP, or an empty string where none is set."""
    token = _given_token(environ).strip()
    if not (token.isascii() and token.isprintable()):
        raise KfpError("the token for KFP has characters that no token has, such as a line break within it")
    return token


def _given_token(environ: Mapping[str, str]) -> str:
    if token := environ.get("FLASHSLM_KFP_TOKEN"):
        return token
    if named := environ.get("FLASHSLM_KFP_TOKEN_FILE"):
        try:
            return Path(named).read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            raise KfpError(f"$FLASHSLM_KFP_TOKEN_FILE: {error}: give a readable file that holds a token") from error
    projected = Path(environ.get("KF_PIPELINES_SA_TOKEN_PATH", _IN_CLUSTER_TOKEN))
    return projected.read_text(encoding="utf-8") if projected.is_file() else ""


class Connection:
    """A KFP API server at `host`; `timeout_s` is that of one attempt, `attempts` those of one call."""

    def __init__(
        self,
        host: str,
        *,
        timeout_s: float = 30.0,
        attempts: int = 6,
        environ: Mapping[str, str] = os.environ,
        sleep: Callable[[float], None] = time.sleep,
    ):
        import kfp_server_api

        self.host = address_of(host)
        self._timeout_s = (min(timeout_s, 10.0), timeout_s)  # to connect, to read
        self._attempts, self._environ, self._sleep = attempts, environ, sleep
        configuration = kfp_server_api.Configuration(host=self.host)
        configuration.retries = False  # neither retries nor redirects: both are decided here
        configuration.ssl_ca_cert = environ.get("SSL_CERT_FILE") or None
        self.client = kfp_server_api.ApiClient(configuration)

    def require_answer(self, timeout_s: float = 3.0) -> None:
        """Raise KfpError at once where nothing listens: a person waits, and the address is likely to be wrong.

        Calls themselves are repeated, because a server that was there may come back.
        """
        parts = urlsplit(self.host)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((str(parts.hostname), port), timeout=timeout_s).close()
        except OSError as error:
            raise KfpError(
                f"nothing answers at {self.host} ({error}): check the address, and a port-forward where there is one"
            ) from error

    def call(self, method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """A call that may be made twice: reading, enabling, deleting. Raises Unavailable after the last attempt."""
        for attempt in range(self._attempts):
            try:
                return self._once(method, *arguments, **options)
            except Unavailable as error:
                self._wait(attempt, error)
        raise AssertionError("the last attempt returns or raises")

    def get(self, path: str) -> Any:
        """The JSON of a path that the generated client does not know (API versions before v2beta1)."""
        return self.call(self.client.call_api, path, "GET", response_type="object", _return_http_data_only=True)

    def get_text(self, path: str) -> str:
        """The text of such a path, for example a pod's log."""
        response = self.call(self.client.call_api, path, "GET", _preload_content=False, expects="text/plain")
        return str(response.data.decode(errors="replace"))

    def create(self, find: Callable[[], T | None], method: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """A call that must have its effect once: what `find` returns before or after an attempt is the result."""
        for attempt in range(self._attempts):
            if (found := find()) is not None:
                return found
            try:
                return self._once(method, *arguments, **options)
            except Conflict:  # another process was faster
                if (found := find()) is not None:
                    return found
                raise
            except Unavailable as error:
                self._wait(attempt, error)
        raise AssertionError("the last attempt returns or raises")

    def _wait(self, attempt: int, error: Unavailable) -> None:
        if attempt == self._attempts - 1:
            raise error
        self._sleep(min(max(error.wait_s, 0.5 * 2**attempt * random.uniform(0.75, 1.25)), _LONGEST_WAIT_S))

    def _once(self, method: Callable[..., T], *arguments: Any, expects: str = "JSON", **options: Any) -> T:
        import kfp_server_api
        import urllib3

        self.client.default_headers.pop("authorization", None)
        if token := token_from(self._environ):
            self.client.set_default_header("authorization", f"Bearer {token}")
        try:
            result = method(*arguments, **options, _request_timeout=self._timeout_s)
        except kfp_server_api.ApiException as error:
            raise self._translated(error) from error
        except urllib3.exceptions.HTTPError as error:
            raise Unavailable(
                f"KFP at {self.host} did not answer: {error}: check the address, and a port-forward where there is one"
            ) from error
        self._check_kind(expects)
        return result

    def _check_kind(self, expects: str) -> None:
        """The generated client makes an empty object of an answer that is not JSON, such as a login page."""
        response = self.client.last_response
        kind = getattr(response, "urllib3_response", response).headers.get("Content-Type", "")
        if expects.lower() not in kind:
            raise KfpError(
                f"{self.host} answers with {kind or 'nothing'} instead of {expects}: it is not the address of a KFP "
                f"API, or it wants a login first: {_HOW_TO_AUTHENTICATE}"
            )

    def _translated(self, error: Any) -> KfpError:
        status, said = int(error.status or 0), _message(error)
        if status in (301, 302, 303, 307, 308, 401):
            known = "authorization" in self.client.default_headers
            why = "asks for a login" if status != 401 else "does not accept the token" if known else "wants a token"
            return KfpError(f"KFP at {self.host} {why} ({status}): {_HOW_TO_AUTHENTICATE}")
        if status == 403:
            return KfpError(f"KFP at {self.host} does not allow this (403): {said or 'ask who grants roles there'}")
        if status in _BUSY:
            return Unavailable(f"KFP at {self.host} answers {status}: {said or error.reason}", _retry_after_s(error))
        if status == 0:  # TLS
            return KfpError(f"KFP at {self.host}: {error.reason}; $SSL_CERT_FILE names the authorities to trust")
        kind = {404: NotFound, 409: Conflict}.get(status, KfpError)
        return kind(f"KFP at {self.host} answers {status}: {said or error.reason}")


def _message(error: Any) -> str:
    """What the server says, without its stack traces."""
    try:
        body = json.loads(error.body or "{}")
    except ValueError:
        return ""
    found = [body.get(key) for key in ("message", "error_message", "error")] if isinstance(body, dict) else []
    return str(next(filter(None, found), ""))[:500]


def _retry_after_s(error: Any) -> float:
    value = (error.headers or {}).get("Retry-After", "")
    return float(value) if value.isdigit() else 0.0

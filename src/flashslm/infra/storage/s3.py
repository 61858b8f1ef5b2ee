"""One S3 client factory, and the translation of its exceptions into those of `errors`."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

import boto3
import botocore.session
from boto3.exceptions import S3UploadFailedError
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, FlexibleChecksumError

from flashslm.infra.outages import Wait
from flashslm.infra.settings import Settings
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing, PreconditionFailed, StoreError, StoreUnavailable

_session_lock = threading.Lock()  # threads may share a client, but not make clients of one session at once
SERVICE = "object store"
_WAIT = "flashslm.wait"  # in the context of a request, which all of its attempts share
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def s3_client(settings: Settings, patience_s: float | None = None, timeout_s: float = 60.0) -> Any:
    """The one place an S3 client is made: path-style addresses, bounded waits for an answer.

    A request that the server fails (429, 5xx), or does not answer for `timeout_s`, is repeated for `patience_s` (the
    settings' own unless given; 0 = it is sent once). A read that ends in HTTP 500 is not: that may be damage, see
    `ObjectStore`.
    """
    config = Config(
        signature_version="s3v4",
        s3={"addressing_style": "path"},
        retries={"mode": "standard", "total_max_attempts": 1},  # `_ride_out` repeats
        connect_timeout=min(5.0, timeout_s),
        read_timeout=timeout_s,
        max_pool_connections=20,  # files at once x parts at once, with room
        request_checksum_calculation=settings.s3_checksums,
        response_checksum_validation=settings.s3_checksums,
        proxies={} if urlsplit(settings.endpoint_url).hostname in LOOPBACK else None,  # never by the user's proxy
    )
    with _session_lock:
        client = _session().client(
            "s3",
            endpoint_url=settings.endpoint_url,
            aws_access_key_id=settings.access_key,
            aws_secret_access_key=settings.secret_key,
            region_name=settings.region,
            config=config,
        )
    if settings.stack_file:
        client.meta.events.register("before-sign.s3", partial(_to_present_address, settings))
    if patience_s := settings.patience_s if patience_s is None else patience_s:
        client.meta.events.register("needs-retry.s3", partial(_ride_out, settings.endpoint_url, patience_s))
    return client


def _ride_out(
    where: str,
    patience_s: float,
    response: tuple[Any, dict[str, Any]] | None,
    caught_exception: Exception | None,
    operation: Any,
    request_dict: dict[str, Any],
    **_: Any,
) -> float | None:
    """botocore asks after every attempt in how many seconds the next one is due; None = what it got is final."""
    status = int(response[1].get("ResponseMetadata", {}).get("HTTPStatusCode", 0)) if response else 0
    wait: Wait | None = request_dict["context"].get(_WAIT)
    is_final = caught_exception is None and not is_outage(status)
    if is_final or (status == HTTPStatus.INTERNAL_SERVER_ERROR and operation.name == "GetObject"):
        if wait:
            wait.end()
        return None
    wait = request_dict["context"].setdefault(_WAIT, wait or Wait(SERVICE, where, patience_s))
    return 0.0 if wait.pause(str(caught_exception or f"HTTP {status}")) else None


def is_outage(status: int) -> bool:
    """Whether an HTTP status says that the server cannot answer now, and nothing of the request."""
    return status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR


def _to_present_address(settings: Settings, request: Any, **_: Any) -> None:
    """Send this attempt of a request to where the embedded S3 listens now."""
    request.url = request.url.replace(settings.endpoint_url, settings.present().endpoint_url, 1)


@cache
def _session() -> Any:
    """One session: its first client costs 0.2 s (service descriptions are read), every other 0.01 s."""
    # The keys come from the settings: a profile that AWS_PROFILE names for the user's own cloud must not be looked up.
    own = botocore.session.Session(session_vars={"profile": (None, None, None, None)})
    return boto3.session.Session(botocore_session=own)


@contextmanager
def translated(where: str, key: str) -> Iterator[None]:
    """Turn the client's exceptions into this module's; `where` is "S3 at <endpoint>, bucket '<bucket>'"."""
    try:
        yield
    except ClientError as error:
        raise _translate(where, key, error) from error
    except S3UploadFailedError as error:
        cause = error.__context__
        raise _translate(where, key, cause) if isinstance(cause, ClientError) else _unavailable(where, error) from error
    except FlexibleChecksumError as error:
        raise ObjectCorrupt(f"{where}: '{key}' is not what was stored: {error}") from error
    except (BotoCoreError, ConnectionError, TimeoutError) as error:
        raise _unavailable(where, error) from error


def mismatch(what: str, expected: str, actual: str) -> ObjectCorrupt:
    return ObjectCorrupt(f"{what} is corrupt: expected sha256 {expected}, got {actual}")


def http_status(error: ClientError) -> int:
    """The HTTP status of a refused request."""
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _translate(where: str, key: str, error: ClientError) -> StoreError:
    status = http_status(error)
    reply = error.response.get("Error", {})
    reason = reply.get("Message") or reply.get("Code")
    if reply.get("Code") == "NoSuchBucket":
        return StoreError(
            f"{where}: there is no such bucket; make it or correct its name (FLASHSLM_BUCKET, data.paths)"
        )
    if status == 404:
        return ObjectMissing(f"'{key}' is not in {where}")
    if status in (409, 412):
        return PreconditionFailed(f"conditional put of '{key}' in {where} lost: {reason}")
    if status in (401, 403):
        return StoreError(f"{where} refused access to '{key}' ({reason}): check AWS_ACCESS_KEY_ID and its secret")
    return _unavailable(where, error) if is_outage(status) else StoreError(f"{where}: {error}")


def _unavailable(where: str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"{where} does not answer after retries ({error}). Look with `flashslm stack status`; "
        "`flashslm stack up` starts it again with the same data",
        http_status(error) if isinstance(error, ClientError) else 0,
    )

"""The database of studies: its calls wait while it is away."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from sqlalchemy import make_url
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError

from flashslm.infra.outages import Wait

SERVICE = "study database"
_SQLITE_LOCK_S = 5.0
_TRIES = 8  # of what may pass in seconds, such as tables that another process is just making
_FINAL = (
    "authentication failed",
    "no pg_hba.conf entry",
    "does not exist",
    "no such table",
    "readonly database",
    "malformed",
)

Result = TypeVar("Result")


class DatabaseUnavailable(ConnectionError):
    """The database was away for as long as this process was ready to wait."""


class DatabaseRefused(RuntimeError):
    """The database answers, and refuses for a reason that waiting does not change."""


class RecordGone(RuntimeError):
    """A study or trial that was there is not: the database was restored, or replaced by a replica that lagged."""


class StudyDatabase:
    """One database behind an SQLAlchemy URL. Safe to share between threads."""

    def __init__(self, url: str, patience_s: float) -> None:
        self.where = make_url(url).render_as_string(hide_password=True)
        self.outages = 0  # that calls of this object have waited for
        self.back_since_s = 0.0  # POSIX time at which the last of them ended
        self._patience_s = patience_s
        self.storage = self.call(lambda: RDBStorage(url, engine_kwargs=_engine_options(url)))

    def call(self, operation: Callable[[], Result], patience_s: float | None = None) -> Result:
        """Run an operation of the storage, again while the database is away (the object's patience unless given).

        Raises RecordGone, DatabaseUnavailable, DatabaseRefused.
        """
        refusals, waited = 0, False
        with Wait(SERVICE, self.where, self._patience_s if patience_s is None else patience_s) as wait:
            while True:
                try:
                    result = operation()
                except KeyError as error:
                    raise RecordGone(f"{error.args[0]} ({self.where})") from error
                except (StorageInternalError, DBAPIError) as error:
                    cause = error.__cause__ if isinstance(error, StorageInternalError) else error
                    assert cause is not None
                    if _is_outage(cause):
                        waited = True
                        if not wait.pause(_reason(cause)):
                            text = f"the {SERVICE} at {self.where} does not answer: {_reason(cause)}"
                            raise DatabaseUnavailable(text) from error
                    elif (refusals := refusals + 1) == _TRIES:
                        raise DatabaseRefused(f"the {SERVICE} at {self.where} refuses: {_reason(cause)}") from error
                    else:
                        time.sleep(0.05 * 2**refusals)
                else:
                    if waited:
                        self.outages, self.back_since_s = self.outages + 1, time.time()
                    return result


def _is_outage(error: BaseException) -> bool:
    """Whether the database is out of reach, starting, locked or, in a fail-over, read-only: not a mistake of its
    address or of a statement.
    """
    return isinstance(error, OperationalError | InterfaceError | InternalError) and not any(
        text in str(error) for text in _FINAL
    )


def _reason(error: BaseException) -> str:
    return " ".join(str(getattr(error, "orig", error)).split())


def _engine_options(url: str) -> dict[str, Any]:
    """No call hangs: sqlite waits for its file lock, Postgres for a host that fell silent, for seconds; `call` repeats.

    The directory of an sqlite file is made; Postgres connections that died are dropped.
    """
    if url.startswith("sqlite"):
        Path(make_url(url).database or "").parent.mkdir(parents=True, exist_ok=True)
        return {"connect_args": {"timeout": _SQLITE_LOCK_S}}
    if not url.startswith("postgresql"):
        return {"pool_pre_ping": True}
    silence = {"keepalives_idle": 20, "keepalives_interval": 10, "keepalives_count": 3, "tcp_user_timeout": 60_000}
    return {"pool_pre_ping": True, "connect_args": {"connect_timeout": 10} | silence}

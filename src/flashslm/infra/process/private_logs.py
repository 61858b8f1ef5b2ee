"""Logs and tracebacks without secrets: an error quotes what it was given, and a step's log is kept and shown."""

import logging
import sys
import threading
import traceback
from types import TracebackType

from flashslm.config.secret import without_secrets

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _WithoutSecrets(logging.Formatter):
    """Another formatter's text, tracebacks included, with stars in place of secrets."""

    def __init__(self, inner: logging.Formatter):
        super().__init__()
        self.inner = inner

    def format(self, record: logging.LogRecord) -> str:
        return without_secrets(self.inner.format(record))


def log_privately() -> None:
    """Have logging and the tracebacks of errors that nothing catches print stars in place of secrets."""
    logging.basicConfig(format=_FORMAT)
    for handler in logging.getLogger().handlers:  # KFP's executor has made its own
        if not isinstance(handler.formatter, _WithoutSecrets):
            handler.setFormatter(_WithoutSecrets(handler.formatter or logging.Formatter()))
    sys.excepthook = _print_exception
    threading.excepthook = lambda caught: _print_exception(caught.exc_type, caught.exc_value, caught.exc_traceback)


def _print_exception(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error or kind(), trace)
        return
    print(without_secrets("".join(traceback.format_exception(kind, error, trace))), end="", file=sys.stderr, flush=True)

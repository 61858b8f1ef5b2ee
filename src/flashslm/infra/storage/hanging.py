"""The end of a process that is asked to end while the object store hangs.

A server that refuses is given up in seconds. One that takes a request and does not answer, as when its node is lost,
holds the thread that asked for a minute (`s3_client`), twice the grace of a pod, and nothing takes it out of that.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from flashslm.infra.process import interrupts
from flashslm.infra.settings import Settings
from flashslm.infra.storage.s3 import s3_client

_LOOK_EVERY_S = 0.5
_ANSWERS_WITHIN_S = 4.0
_UNANSWERED_S = 8.0  # longer than it takes to give up a store that refuses; of 30 s the rest is for what is done then
_log = logging.getLogger(__name__)


@contextmanager
def ended_in_time(settings: Settings, before_exit: Callable[[], None]) -> Iterator[None]:
    """Once this process is asked to end and the store does not answer, leave it with 128 + signal although the block
    has not ended. A store that is only slow, such as with the last checkpoint, is waited for.
    """
    over = threading.Event()

    def watch() -> None:
        while not interrupts.stop_requested():
            if over.wait(_LOOK_EVERY_S):
                return
        client = s3_client(settings, patience_s=0, timeout_s=_ANSWERS_WITHIN_S)
        answered_s = time.monotonic()
        while time.monotonic() - answered_s < _UNANSWERED_S:
            if over.wait(_LOOK_EVERY_S):
                return
            if _answers(client, settings.bucket):
                answered_s = time.monotonic()
        _log.error("S3 at %s does not answer: this process ends and leaves what waits for it", settings.endpoint_url)
        before_exit()
        os._exit(128 + interrupts.requested_by())

    threading.Thread(target=watch, daemon=True, name="end-in-time").start()
    try:
        yield
    finally:
        over.set()


def _answers(client: Any, bucket: str) -> bool:
    """Also a refusal is an answer."""
    try:
        client.head_bucket(Bucket=bucket)
    except (BotoCoreError, ConnectionError, TimeoutError):
        return False
    except ClientError:
        pass
    return True

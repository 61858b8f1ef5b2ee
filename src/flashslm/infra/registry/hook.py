"""Announce a promotion: to a command, or to a webhook signed with HMAC-SHA256. It never raises because of them."""

import hashlib
import hmac
import json
import os
import subprocess
import time
import uuid
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3

from flashslm.config import HOOK_URL_VARIABLE, PromotionHook
from flashslm.config.secret import without_secrets

SIGNATURE_HEADER = "X-Flashslm-Signature"
DELIVERY_HEADER = "X-Flashslm-Delivery"  # the same in every attempt: who has seen it may drop the message
_WAIT_S = 0.5  # before the second attempt; it doubles
_OUTPUT_CHARACTERS = 300


class HookFailed(RuntimeError):
    """An attempt failed; `final` when another one would fail alike."""

    def __init__(self, message: str, final: bool = False):
        super().__init__(message)
        self.final = final


def sign(secret: str, body: bytes) -> str:
    """The value of the signature header: "sha256=" and the hexadecimal HMAC-SHA256 of the body."""
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def call_hook(
    hook: PromotionHook,
    event: Mapping[str, Any],
    environ: Mapping[str, str] | None = None,
    sleep: Callable[[float], None] = time.sleep,
    delivery: str = "",
) -> str:
    """Deliver `event` as JSON and say what came of it: "delivered ..." or "failed ..."; "" where there is no hook.

    The body also holds `sent_s`, the POSIX time of the attempt: it is signed too, so that a receiver can refuse what is
    old. `delivery` identifies the message to who may receive it twice. The outcome names the webhook's host alone,
    since an address may hold a token.
    """
    if not hook.command and not hook.url:
        return ""
    variables = os.environ if environ is None else environ
    delivery, failure = delivery or uuid.uuid4().hex, ""
    for attempt in range(1, hook.attempts + 1):
        if attempt > 1:
            sleep(_WAIT_S * 2 ** (attempt - 2))
        body = json.dumps(dict(event) | {"sent_s": round(time.time(), 3)}, sort_keys=True).encode()
        try:
            answer = _post(hook, body, delivery, variables) if hook.url else _execute(hook, body)
            return f"delivered in attempt {attempt}: {answer}"
        except HookFailed as error:
            failure = f"failed in attempt {attempt} of {hook.attempts}: {error}"
            if error.final:
                break
    return failure


def _post(hook: PromotionHook, body: bytes, delivery: str, variables: Mapping[str, str]) -> str:
    secret = variables.get(hook.secret_variable, "")
    if not secret:
        raise HookFailed(f"${hook.secret_variable} is empty: it must hold the key that signs the message", final=True)
    address = hook.address(variables)
    if not address:
        raise HookFailed(f"${HOOK_URL_VARIABLE} is empty: it must hold the webhook's address", final=True)
    host = urlsplit(address).hostname or ""
    headers = {"Content-Type": "application/json", SIGNATURE_HEADER: sign(secret, body), DELIVERY_HEADER: delivery}
    try:
        with urllib3.PoolManager() as pool:
            answer = pool.request(
                "POST", address, body=body, headers=headers, timeout=hook.timeout_s, retries=False, redirect=False
            )
    except urllib3.exceptions.HTTPError as error:
        raise HookFailed(f"{host}: {type(error).__name__}") from error
    if not 200 <= answer.status < 300:
        passing = answer.status in (408, 429) or answer.status >= 500
        raise HookFailed(f"{host} answered {answer.status}", final=not passing)
    return f"{host} answered {answer.status}"


def _execute(hook: PromotionHook, body: bytes) -> str:
    """The command gets the body on its standard input; success is exit status 0."""
    name = hook.command[0]
    try:
        done = subprocess.run(
            hook.command,
            input=body,
            timeout=hook.timeout_s,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise HookFailed(f"{name} took longer than {hook.timeout_s:g} s") from error
    except OSError as error:
        raise HookFailed(f"{name}: {error}", final=True) from error
    if done.returncode:
        end = without_secrets(done.stdout.decode(errors="replace").strip())[-_OUTPUT_CHARACTERS:]
        raise HookFailed(f"{name} exited with {done.returncode}: {end or '(no output)'}")
    return f"{name} exited with 0"

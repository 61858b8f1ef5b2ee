"""Text that must not be seen: a type for it, and what such text looks like where it does not belong."""

import os
import re
from collections.abc import Iterator
from typing import Any

from pydantic import SecretStr

STARS = "**********"
SECRET_FIELDS = ("gate.promotion_hook.url",)  # of a recipe: those of the type Secret
MISPLACED = (
    "this looks like a token or a password, and would be written to runs and pipelines: give it by the environment "
    "(a hook's command inherits it)"
)
# Forms that issuers give their keys and tokens, so that one can be recognised: AWS, Hugging Face, GitHub, GitLab,
# Slack, OpenAI and its like, JSON web tokens, private keys, chat webhooks, and a password or token within an address.
_FORMS = re.compile(
    r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|\bhf_[A-Za-z0-9]{30,}"
    r"|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}|\bglpat-[\w-]{20,}"
    r"|\bxox[abeprs]-[\w-]{10,}|\bsk-[\w-]{20,}"
    r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]*"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|\bBearer\s+[\w.~+/=-]{8,}"
    r"|hooks\.slack\.com/services/\w[\w/]*|discord(app)?\.com/api/webhooks/\w[\w/-]*"
    r"|://[^/\s:@]*:[^/\s@]+@"
    r"|[?&](access_)?(token|key|sig|signature|password|secret)=[^&\s'\"]+",
    re.IGNORECASE,
)


# Variables whose value is secret whatever its form.
_VARIABLE = re.compile(r"(TOKEN|SECRET|PASSWORD|PASSWD|PASSPHRASE|KEY|HOOK_URL)$")
_MIN_CHARACTERS = 8  # a shorter value would put stars into ordinary words
_values: set[str] = set()  # of the fields that this process has read


class Secret(SecretStr):
    """Text that prints, and is written to any file, as stars; `get_secret_value` gives it.

    Whoever reads such a file back has the stars, and takes the value from the environment.
    """

    def __init__(self, value: str) -> None:
        super().__init__(value)
        if value != STARS:
            _values.add(value)

    @property
    def is_hidden(self) -> bool:
        """Whether only the stars came here."""
        return self.get_secret_value() == STARS

    def __bool__(self) -> bool:
        return bool(self.get_secret_value())


def holds_secret(text: str) -> bool:
    """Whether a text has a part in the form of a known kind of secret."""
    return _FORMS.search(text) is not None


def without_secrets(text: str) -> str:
    """The text with stars in place of such parts, of the values of Secret fields, and of those of variables such as
    HF_TOKEN: for messages that quote what was given, and for tracebacks.
    """
    for value in sorted(_known_values(), key=len, reverse=True):
        text = text.replace(value, STARS)
    return _FORMS.sub(STARS, text)


def _known_values() -> set[str]:
    named = {value for name, value in os.environ.items() if _VARIABLE.search(name.upper())}
    return {value for value in named | _values if len(value) >= _MIN_CHARACTERS and value != STARS}


def places_of_secrets(values: Any) -> list[str]:
    """Where texts in nested mappings and lists hold such parts, as dotted paths."""
    return [where for where, value in leaves(values) if isinstance(value, str) and holds_secret(value)]


def leaves(values: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Every value that is neither a mapping nor a list, with its dotted path. What aliases repeat is listed once."""
    waiting, seen = [(where, values)], set()
    while waiting:
        place, value = waiting.pop()
        if not isinstance(value, dict | list | tuple):
            yield place, value
        elif id(value) not in seen:
            seen.add(id(value))
            items = value.items() if isinstance(value, dict) else enumerate(value)
            waiting += [(f"{place}.{key}".strip("."), item) for key, item in items]

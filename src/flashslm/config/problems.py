"""What is wrong with a recipe's values, in words: the field, what was given, what is allowed."""

import difflib
from collections.abc import Callable
from typing import Any, get_args

from flashslm.config.secret import SECRET_FIELDS, without_secrets
from flashslm.config.section import DNS_LABEL
from flashslm.config.training import MODEL_NAME

MAX_SHOWN = 200  # characters of a value that is quoted
IN_WORDS = {  # what a pattern of names allows
    MODEL_NAME: "1 to 128 letters, digits, '_', '.', '-' and blanks, with a letter, digit or '_' at both ends",
    DNS_LABEL: "1 to 63 small letters, digits and '-', with a letter or digit at both ends",
}


Near = Callable[[str], list[str]]


def describe(error: Any, model: Any, near: Near | None = None) -> str:
    """One of pydantic's errors about `model` as: where, what was given, what is allowed.

    `near` finds settings elsewhere that a key may stand for; without it a message has no such hint.
    """
    where = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        fields = _fields_at(error["loc"][:-1], model)
        hint = _did_you_mean(where, fields, near) if near and len(where) <= MAX_SHOWN else ""
        return without_secrets(f"{where}: unknown key; {hint}allowed here: {', '.join(fields)}")
    message = error["msg"].removeprefix("Value error, ")
    if words := next((words for pattern, words in IN_WORDS.items() if f"'{pattern}'" in message), ""):
        message = f"{message}: {words}"
    silent = isinstance(error.get("input"), dict) or error["type"] == "missing" or where in SECRET_FIELDS
    given = "" if silent else f" (given: {_shown(error['input'])})"
    return without_secrets(f"{where}: {message}{given}")


def _did_you_mean(where: str, fields: list[str], near: Near) -> str:
    """From the fields of the same section, else from the settings of all; "" if none is near."""
    found = difflib.get_close_matches(where.rpartition(".")[2], fields, n=2) or near(where)
    return f"did you mean {' or '.join(map(repr, found))}? " if found else ""


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text):,} characters)"


def _fields_at(location: tuple[Any, ...], model: Any) -> list[str]:
    for part in location:
        inside = get_args(model)  # of a dict: key and value; of a tuple: the item
        model = inside[isinstance(part, str)] if inside else model.model_fields[part].annotation
    return sorted(model.model_fields)

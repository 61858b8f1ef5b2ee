"""What is wrong with a recipe's values, in words: the field, what was given, what is allowed."""

from typing import Any, get_args

from flashslm.config.secret import SECRET_FIELDS, without_secrets

MAX_SHOWN = 200  # characters of a value that is quoted


def describe(error: Any, model: Any) -> str:
    """One of pydantic's errors about `model` as: where, what was given, what is allowed."""
    where = ".".join(str(part) for part in error["loc"]) or "recipe"
    if error["type"] == "extra_forbidden":
        allowed = ", ".join(_fields_at(error["loc"][:-1], model))
        return without_secrets(f"{where}: unknown key; allowed here: {allowed}")
    message = error["msg"].removeprefix("Value error, ")
    silent = isinstance(error.get("input"), dict) or error["type"] == "missing" or where in SECRET_FIELDS
    given = "" if silent else f" (given: {_shown(error['input'])})"
    return without_secrets(f"{where}: {message}{given}")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}… ({len(text):,} characters)"


def _fields_at(location: tuple[Any, ...], model: Any) -> list[str]:
    for part in location:
        inside = get_args(model)  # of a dict: key and value; of a tuple: the item
        model = inside[isinstance(part, str)] if inside else model.model_fields[part].annotation
    return sorted(model.model_fields)

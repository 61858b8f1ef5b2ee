"""What a registered model says of itself in MLflow: descriptions, and values as tags that a person can read."""

import json
from contextlib import suppress
from typing import Any

from flashslm.infra.storage.object_store import Manifest

MODEL = (
    "A hybrid small language model that flashslm designed and trained: it continues texts. The alias `champion` is "
    "deployed, `previous` was before it, `challenger` was registered last. "
    '`mlflow.pyfunc.load_model("models:/NAME@champion")` loads it, '
    "`flashslm models pull NAME@champion -o DIR` copies it."
)
_JSON_BEGINS = ("{", "[", '"', "")


def description(manifest: Manifest, facts: dict[str, Any], commit: str) -> str:
    """What a person wants to know of a version first."""
    forms = {"perplexity": "{:.4g} perplexity", "latency_ms": "{:.4g} ms/token", "parameters": "{:,} parameters"}
    parts = [form.format(facts[key]) for key, form in forms.items() if key in facts]
    parts += [f"operators {manifest.metadata['operators']}"] if "operators" in manifest.metadata else []
    parts += [f"on {facts['device']}"] if "device" in facts else []
    parts += [f"measured on data {facts['dataset_sha256'][:12]}"] if "dataset_sha256" in facts else []
    parts += [f"commit {commit[:8]}"] if commit else []
    return "; ".join(parts)


def tagged(prefix: str, values: dict[str, Any]) -> dict[str, str]:
    """Values as tags whose names begin with a prefix."""
    return {prefix + key: _as_text(value) for key, value in values.items()}


def _as_text(value: Any) -> str:
    """Plain text as it is, everything else, and text that could be taken for it, as JSON."""
    if not isinstance(value, str) or value[:1] in _JSON_BEGINS:
        return json.dumps(value)
    with suppress(ValueError):
        json.loads(value)
        return json.dumps(value)
    return value


def untagged(prefix: str, tags: dict[str, str]) -> dict[str, Any]:
    """What `tagged` was given, taken out of the tags. Raises ValueError for a damaged one."""
    return {key.removeprefix(prefix): _from_text(tags.pop(key)) for key in list(tags) if key.startswith(prefix)}


def _from_text(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        if text[:1] in _JSON_BEGINS:  # damaged
            raise
        return text

"""Published models on the Hugging Face hub, by addresses such as hf://nvidia/Nemotron-Flash-1B@main."""

from pathlib import Path

PREFIX = "hf://"
_FILES = ("*.json", "*.safetensors", "*.jinja")  # weights and texts: no code of the hub is fetched


def fetch_model(address: str) -> Path:
    """The model's directory in the hub's cache, fetched unless it is there. Raises ValueError for a wrong address, and
    for a model that cannot be fetched.
    """
    import huggingface_hub

    name, _, revision = address.removeprefix(PREFIX).partition("@")
    try:
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=list(_FILES)))
    except Exception as error:  # its errors and those of the network share no base class
        reason = " ".join(str(error).split())
        raise ValueError(f"'{address}' cannot be fetched (expected hf://OWNER/NAME[@REVISION]): {reason}") from error

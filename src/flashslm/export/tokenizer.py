"""The tokenizer files of an export, readable by transformers 4.57 and 5: text tokens only, no memory tokens."""

import shutil
from pathlib import Path
from typing import Any

from flashslm.export.files import read_json, write_json

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
# The model takes no token_type_ids; generation continues the last column, so padding goes to the left.
_USE = {"model_input_names": ["input_ids", "attention_mask"], "padding_side": "left"}


def write_tokenizer(source: Path, directory: Path, vocab_size: int, max_length: int) -> dict[str, int]:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; return bos, eos and pad ids.

    `max_length` is in text tokens. A missing bos or pad token is the eos token. Raises ValueError when the tokenizer
    has no eos token or more tokens than the model.
    """
    from tokenizers import Tokenizer

    if not (source / "tokenizer.json").is_file():
        raise ValueError(f"'{source}' has no tokenizer.json: an export needs a fast tokenizer")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    size = tokenizer_length(source)
    if size > vocab_size:
        raise ValueError(f"the tokenizer in '{source}' has {size} tokens, the model {vocab_size}: use its own one")
    config = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    saved = source / "special_tokens_map.json"
    roles = _roles(config | (read_json(saved) if saved.is_file() else {}))
    if "eos_token" not in roles:
        raise ValueError(f"the tokenizer in '{source}' names no eos_token: add one to tokenizer_config.json")
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), roles["eos_token"]) | roles
    for file in (source / "tokenizer.json", source / "chat_template.jinja"):
        if file.is_file():
            shutil.copyfile(file, directory / file.name)
    write_json(directory / "tokenizer_config.json", _portable(config) | _USE | roles | {"model_max_length": max_length})
    write_json(directory / "special_tokens_map.json", roles)
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    unknown = sorted(name for name, token in roles.items() if token not in vocabulary)
    if unknown:
        raise ValueError(f"the tokenizer in '{source}' has no token for {', '.join(unknown)}")
    return {f"{name}_id": vocabulary[token] for name, token in roles.items() if name != "unk_token"}


def tokenizer_length(directory: Path) -> int:
    """Highest token id plus one, added tokens included."""
    from tokenizers import Tokenizer

    vocabulary = Tokenizer.from_file(str(directory / "tokenizer.json")).get_vocab(with_added_tokens=True)
    return max(vocabulary.values(), default=-1) + 1


def _roles(config: dict[str, Any]) -> dict[str, str]:
    """The special tokens; a saved one is its text, or a mapping with its text under `content`."""
    found = {name: config.get(name) for name in ROLES}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in found.items() if token}


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Drop or rename what transformers 5 writes and 4.57 cannot read."""
    kept = {name: value for name, value in config.items() if name not in ("backend", "is_local", "local_files_only")}
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast"}

"""The tokenizer files of an export, readable by transformers 4.57 and 5: text tokens only, no memory tokens."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashslm.export.files import read_json, read_object, write_json

ROLES = ("bos_token", "eos_token", "pad_token", "unk_token")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja")
_MEMORY_TOKEN = re.compile(r"<(mem|dummy)_\d+>")  # what TensorRT-LLM adds after the text tokens
# The model takes no token_type_ids; generation continues the last column, so padding goes to the left.
USE = {
    "model_input_names": ["input_ids", "attention_mask"],
    "padding_side": "left",
    "add_bos_token": True,
    "add_eos_token": False,
}


def write_tokenizer(source: Path, directory: Path, vocab_size: int, max_length: int) -> dict[str, int]:
    """Write tokenizer.json, tokenizer_config.json and special_tokens_map.json; return bos, eos and pad ids.

    The eos token begins every document in training: it becomes the bos token, and the tokenizer puts it before every
    text. A missing pad token is the eos token too. `max_length` is in text tokens. Raises ValueError when the tokenizer
    has no eos token or does not fit the model.
    """
    if not (source / "tokenizer.json").is_file():
        raise ValueError(f"'{source}' has no tokenizer.json: an export needs a fast tokenizer")
    if problems := tokenizer_problems(source, vocab_size):
        raise ValueError(f"the tokenizer in '{source}' does not fit the model: {'; '.join(problems)}")
    config = read_json(source / "tokenizer_config.json") if (source / "tokenizer_config.json").is_file() else {}
    saved = source / "special_tokens_map.json"
    roles = _roles(config | (read_json(saved) if saved.is_file() else {}))
    if "eos_token" not in roles:
        raise ValueError(f"the tokenizer in '{source}' names no eos_token: add one to tokenizer_config.json")
    end = roles["eos_token"]
    roles = {"pad_token": end} | roles | {"bos_token": end}
    ids = _vocabulary(source)
    if unknown := sorted(name for name, token in roles.items() if token not in ids):
        raise ValueError(f"the tokenizer in '{source}' has no token for {', '.join(unknown)}")
    if unknown := sorted(set(_named_tokens(config)) - ids.keys()):
        raise ValueError(
            f"the tokenizer in '{source}' names {', '.join(unknown)} in tokenizer_config.json, which its "
            "tokenizer.json does not have: load and save it once with transformers"
        )
    if (source / "chat_template.jinja").is_file():
        shutil.copyfile(source / "chat_template.jinja", directory / "chat_template.jinja")
    begun = read_object(source / "tokenizer.json") | {"post_processor": _begin_with(end, ids[end])}
    (directory / "tokenizer.json").write_text(json.dumps(begun), encoding="utf-8")
    write_json(directory / "tokenizer_config.json", _portable(config) | USE | roles | {"model_max_length": max_length})
    write_json(directory / "special_tokens_map.json", roles)
    return {f"{name}_id": ids[token] for name, token in roles.items() if name != "unk_token"}


def tokenizer_problems(directory: Path, vocab_size: int) -> list[str]:
    """Why the memory tokens would not get the ids from `vocab_size` on, which the runtime gives to what it adds."""
    try:
        ids = _vocabulary(directory)
    except ValueError as error:
        return [str(error)]
    length = max(ids.values(), default=-1) + 1
    problems = []
    if length > vocab_size:
        problems.append(f"{length} tokens, vocab_size is {vocab_size}: the memory tokens' ids would shift")
    if len(set(ids.values())) < length:
        problems.append(f"its ids end at {length - 1} and have gaps: the memory tokens' ids would shift")
    if memory := sorted(filter(_MEMORY_TOKEN.fullmatch, ids)):
        problems.append(f"it has {', '.join(memory[:3])}: the runtime adds the memory tokens itself")
    return problems


def special_token_ids(directory: Path, file: str) -> dict[str, int | None]:
    """The id of each special token that a JSON file names; None: tokenizer.json has no such token."""
    ids, roles = _vocabulary(directory), _roles(read_object(directory / file))
    return {f"{name}_id": ids.get(token) for name, token in roles.items()}


def unknown_tokens(directory: Path, file: str) -> list[str]:
    """Tokens that a JSON file names and tokenizer.json does not have: transformers adds them behind its last one.

    Left out are bos, eos and pad: `special_token_ids` has them.
    """
    return sorted(set(_named_tokens(read_object(directory / file))) - _vocabulary(directory).keys())


def beginning_problems(directory: Path, bos_token_id: int) -> list[str]:
    """Why a text's ids would not be the bos id, then the text's own tokens and no more, as in training."""
    tokenizer = open_tokenizer(directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    bare, whole = (tokenizer.encode("a", add_special_tokens=special).ids for special in (False, True))
    if whole == [bos_token_id, *bare]:
        return []
    return [f"its post_processor makes {whole} of a text's {bare}: expected {[bos_token_id, *bare]}, the bos id first"]


def copy_tokenizer_files(source: Path, directory: Path) -> bool:
    """Copy the tokenizer of an export into `directory`; false, and nothing is made, when it has none."""
    if not (source / "tokenizer.json").is_file():
        return False
    directory.mkdir()
    for name in TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, directory / name)
    return True


def open_tokenizer(directory: Path) -> Any:
    """The `tokenizers.Tokenizer` of a directory. Raises ValueError when its tokenizer.json is none."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(directory / "tokenizer.json"))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"tokenizer.json is not a tokenizer: {error}") from error


def _vocabulary(directory: Path) -> dict[str, int]:
    ids: dict[str, int] = open_tokenizer(directory).get_vocab(with_added_tokens=True)
    return ids


def _begin_with(token: str, token_id: int) -> dict[str, Any]:
    """The post-processor of tokenizer.json that puts one token before every text."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    special = {token: {"id": token, "ids": [token_id], "tokens": [token]}}
    return {"type": "TemplateProcessing", "single": [first, a], "pair": [first, a, b], "special_tokens": special}


def _roles(config: dict[str, Any]) -> dict[str, str]:
    """The special tokens; a saved one is its text, or a mapping with its text under `content`."""
    found = {name: config.get(name) for name in ROLES}
    texts = {name: token.get("content") if isinstance(token, dict) else token for name, token in found.items() if token}
    return {name: str(text) for name, text in texts.items()}


def _named_tokens(config: dict[str, Any]) -> Iterator[str]:
    """Every token in a tokenizer's config besides bos, eos and pad."""
    found = [v for name, v in config.items() if name.endswith("_token") and name not in ROLES[:3]]
    for name in ("additional_special_tokens", "extra_special_tokens", "added_tokens_decoder"):
        several = config.get(name) or ()
        found += several.values() if isinstance(several, dict) else several
    texts = (token.get("content") if isinstance(token, dict) else token for token in found)
    return (text for text in texts if isinstance(text, str))


def _portable(config: dict[str, Any]) -> dict[str, Any]:
    """Drop or rename what transformers 5 writes and 4.57 cannot read."""
    kept = {name: value for name, value in config.items() if name not in ("backend", "is_local", "local_files_only")}
    if isinstance(kept.get("extra_special_tokens"), list):
        kept["additional_special_tokens"] = kept.pop("extra_special_tokens")
    return kept | {"tokenizer_class": "PreTrainedTokenizerFast"}

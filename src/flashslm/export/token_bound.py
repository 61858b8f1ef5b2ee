"""How few tokens a text can have, known without encoding it: a text that is far too long need not be."""

import json
import math
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer, pre_tokenizers


def longest_token_bytes(tokenizer: Tokenizer) -> float:
    """Bytes of text that one token stands for at most.

    Infinite for a tokenizer that may leave out parts of a text, or put one token for any length of it: one that
    normalises or truncates, that is not BPE on bytes, or has tokens that take the spaces around them.
    """
    if not _keeps_every_byte(json.loads(tokenizer.to_str())):
        return math.inf
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    # A token of the model has one character per byte.
    lengths = (len(t.encode()) if t in added else len(t) for t in tokenizer.get_vocab(with_added_tokens=True))
    return float(max(lengths))


def _keeps_every_byte(tokenizer: dict[str, Any]) -> bool:
    model, splits = tokenizer["model"], list(_flat(tokenizer["pre_tokenizer"]))
    return (
        tokenizer["normalizer"] is None
        and tokenizer["truncation"] is None
        and model["type"] == "BPE"
        and set(pre_tokenizers.ByteLevel.alphabet()) <= model["vocab"].keys()
        and any(split["type"] == "ByteLevel" for split in splits)
        and all(split["type"] in ("ByteLevel", "Digits") or split.get("behavior") == "Isolated" for split in splits)
        and not any(token["lstrip"] or token["rstrip"] for token in tokenizer["added_tokens"])
    )


def _flat(pre_tokenizer: dict[str, Any] | None) -> Iterator[dict[str, Any]]:
    if pre_tokenizer is None:
        return
    if pre_tokenizer["type"] != "Sequence":
        yield pre_tokenizer
    for part in pre_tokenizer.get("pretokenizers", ()):
        yield from _flat(part)

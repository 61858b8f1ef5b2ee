"""The tokenizer: byte-level BPE trained on the run's own text, or one that exists.

One token, `<|endoftext|>`, begins every document and ends the stream: it is bos, eos and pad at once.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

END_OF_DOCUMENT = "<|endoftext|>"
MAX_TOKENS = 2**22  # of a vocabulary: each is a row of the embedding
HOW_IT_WAS_LOADED = (
    "backend",
    "is_local",
    "local_files_only",
)  # transformers 5 writes these beside what the tokenizer is


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """Train byte-level BPE with exactly `vocab_size` tokens: end of document (id 0), the 256 bytes, merges.

    Raises ValueError when the text has too few repeated pairs for that many tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[AddedToken(END_OF_DOCUMENT, special=True, normalized=False)],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    reached = tokenizer.get_vocab_size()
    if reached < vocab_size:
        raise ValueError(
            f"the text gives {reached} distinct tokens of data.vocab_size {vocab_size}: lower data.vocab_size to at "
            f"most {reached}, or give more text (data.max_bytes, data.tokenizer_bytes)"
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path) -> None:
    """Write a directory that AutoTokenizer of transformers 4.57 and 5 loads as PreTrainedTokenizerFast.

    Written here because transformers 5 records a class name that 4.x does not know.
    """
    directory.mkdir(parents=True)
    tokenizer.save(str(directory / "tokenizer.json"), pretty=False)
    roles = dict.fromkeys(("bos_token", "eos_token", "pad_token"), END_OF_DOCUMENT)
    _write_json(directory / "special_tokens_map.json", roles)
    facts = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    _write_json(directory / "tokenizer_config.json", facts | roles)


def load_tokenizer(directory: Path) -> Any:
    """The PreTrainedTokenizerFast of a prepared data set or of an exported model."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(str(directory))


def read_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of a directory without what transformers adds to it."""
    return Tokenizer.from_file(str(directory / "tokenizer.json"))


def copy_tokenizer(name: str, directory: Path, revision: str = "") -> tuple[Tokenizer, int]:
    """Copy the tokenizer of a directory or hub id; return it and the id of its end-of-document token.

    Ids that it leaves out get placeholder tokens, so that its size is its largest id + 1, as a model's vocabulary is.
    Raises ValueError when it has no fast form or no end-of-text token, or an id above MAX_TOKENS.
    """
    from transformers import AutoTokenizer

    try:
        # AutoTokenizer would read the config of a model beside it, and ask whether to run the model's own code.
        is_whole = (Path(name) / "tokenizer.json").is_file()
        loaded = (
            load_tokenizer(Path(name))
            if is_whole
            else AutoTokenizer.from_pretrained(name, revision=revision or "main", trust_remote_code=False)
        )
    except Exception as error:  # transformers, huggingface_hub and tokenizers have no common one
        raise ValueError(
            f"data.tokenizer '{name}' cannot be loaded ({error}): give 'train', a directory or a hub id"
        ) from error
    if not loaded.is_fast or loaded.eos_token_id is None:
        lacks = "an end-of-text token" if loaded.is_fast else "a fast form (tokenizer.json)"
        raise ValueError(f"data.tokenizer '{name}' lacks {lacks}: choose another, or 'train'")
    largest = max(loaded.get_vocab().values())
    if largest >= MAX_TOKENS:
        raise ValueError(f"data.tokenizer '{name}' has the id {largest}: at most {MAX_TOKENS:,} tokens are allowed")
    loaded.save_pretrained(directory)
    file = directory / "tokenizer_config.json"
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["tokenizer_class"] = "PreTrainedTokenizerFast"
    _write_json(file, {k: v for k, v in facts.items() if k not in HOW_IT_WAS_LOADED})
    roles = {k: v for k, v in loaded.special_tokens_map.items() if isinstance(v, str)}
    _write_json(directory / "special_tokens_map.json", roles)
    return _without_gaps(directory / "tokenizer.json", name), int(loaded.eos_token_id)


def _without_gaps(file: Path, name: str) -> Tokenizer:
    """The tokenizer of a tokenizer.json, with a placeholder in the file for each id that no token has."""
    tokenizer = Tokenizer.from_file(str(file))
    ids = tokenizer.get_vocab()
    missing = sorted(set(range(max(ids.values()) + 1)) - set(ids.values()))
    if not missing:
        return tokenizer
    content = json.loads(file.read_text(encoding="utf-8"))
    placeholders = {f"<unused_{number}>": number for number in missing}
    if isinstance(content["model"].get("vocab"), dict):
        content["model"]["vocab"] |= placeholders
        file.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")
        filled = Tokenizer.from_file(str(file))
        if filled.get_vocab() == ids | placeholders:
            return filled
    raise ValueError(f"data.tokenizer '{name}' has no token for {len(missing)} ids below its largest: choose another")


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=1, sort_keys=True), encoding="utf-8")

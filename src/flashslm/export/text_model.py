"""An exported directory as a model of text: its tokenizer, where its texts begin and end, and how long they may be."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from pathlib import Path
from typing import Any

from flashslm.config import WeightFormat
from flashslm.export.files import read_object
from flashslm.export.hf_config import architecture_from_config, served_weights, shown
from flashslm.export.importing import load_export
from flashslm.export.published import plain_config
from flashslm.export.token_bound import longest_token_bytes
from flashslm.export.tokenizer import open_tokenizer
from flashslm.hardware import pick_device
from flashslm.inference.stops import StopStrings
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM


@dataclass(frozen=True)
class TextModel:
    """What a directory says of its texts; the weights are read when they are asked for."""

    directory: Path
    architecture: Architecture
    tokenizer: Any  # tokenizers.Tokenizer
    bos_id: int
    end_ids: frozenset[int]
    weights: WeightFormat = "full"  # that an engine is to decode with

    @classmethod
    def open(cls, directory: Path) -> "TextModel":
        """Raises ValueError for a directory without a model, and for one that names no first or last token."""
        missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
        if missing:
            raise ValueError(
                f"'{directory}' is not an exported model ({', '.join(missing)} not found): "
                "give a directory such as runs/latest/export/huggingface"
            )
        tokenizer = open_tokenizer(directory)
        config = read_object(directory / "config.json")
        architecture = architecture_from_config(plain_config(config)[0])
        bos_id, end_ids = _token_ids(config, "bos_token_id")[0], frozenset(_token_ids(config, "eos_token_id"))
        return cls(directory, architecture, tokenizer, bos_id, end_ids, served_weights(config))

    @property
    def text_positions(self) -> int:
        """Tokens that prompt and continuation may have together."""
        return self.architecture.max_position_embeddings - self.architecture.num_meta_tokens

    def load(self) -> HybridLM:
        """The model, on the device that there is."""
        return load_export(self.directory, pick_device("auto")).eval()

    def fewest_tokens(self, text: str) -> int:
        """A lower bound of the tokens that `encode` makes of a text, at the cost of reading its length."""
        return 1 + ceil(len(text) / self._longest_token_bytes)

    @cached_property
    def _longest_token_bytes(self) -> float:
        return longest_token_bytes(self.tokenizer)

    def encode(self, text: str) -> list[int]:
        """Every text begins with the beginning-of-text token, as every document does in training.

        Other threads of Python run meanwhile.
        Raises ValueError for a text with half of a surrogate pair, which is what a terminal makes of bytes other than
        UTF-8.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"the text is not valid UTF-8 from character {error.start + 1} on") from error
        (encoded,) = self.tokenizer.encode_batch_fast([text], add_special_tokens=False)  # `encode` holds Python's lock
        return [self.bos_id, *encoded.ids]

    def stop_strings(self, stops: Sequence[str]) -> StopStrings:
        """Raises ValueError for an empty text, which would stop everything."""
        if "" in stops:
            raise ValueError("a stop string is empty: give at least one character")
        return StopStrings(self.tokenizer, stops, self.end_ids)


def _token_ids(config: dict[str, Any], name: str) -> list[int]:
    """A special token's id; published models may have several."""
    found = config.get(name)
    ids: list[Any] = found if isinstance(found, list) else [found]
    if not ids or not all(type(token_id) is int for token_id in ids):
        raise ValueError(f"config.json: {name} is {shown(found)}: expected a token's id")
    return ids

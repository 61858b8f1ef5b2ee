"""Text to token ids by a fast encoder, fastokens, wherever its ids are those of `tokenizers`; else by the latter.

fastokens refuses tokenizers whose parts it does not have (Unigram, WordPiece, Metaspace, most normalizers). One that it
takes is first compared with `tokenizers` on text that is hard to split.
"""

from collections.abc import Sequence
from typing import Any

import fastokens
import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

TokenIds = NDArray[np.uint32]

# The only letters outside ASCII that are equal to ASCII letters when case is ignored, as in "(?i:'s|'t|...)". fastokens
# 0.3.5 splits "g'ſ'st" otherwise than `tokenizers` does, so that documents with them go to the latter.
CASE_FOLDING_LETTERS = "\u017f\u212a"

_PROBES = (
    "",
    " ",
    "word  two   three    four\n\n\n  five\r\n\r\n six\r seven\t\t eight",
    "eight \u00a0\u3000 nine\u2028ten\u0085eleven \x1c\x1f \n",
    "don't DON'T I'll we've they'Re it's IT'S 'tis ''s 's'S \u2019s o'clock x'y'z",
    "1 12 123 1234 12345 123456789 1,234.56 ٣٤٥ ½ Ⅷ x² 3rd",
    "def f(x):\n    return {'a': [1, 2]}  # ===== != <= -> ... ://__init__.py\n\t\tif not_x:\r\n",
    "camelCase HTTPServer ALLCAPS ǅ ʰ İ ß ẞ ﬁ é e\u0301 Å Å \u1100\u1161 한국어 日本語テキスト ไทย हिन्दी العربية",
    "👩‍👩‍👧‍👦 👍🏽 🇩🇪 \U0001f9d1 \U00010348 \u200b\u200d\ufeff\u180e\u0345 \x00\x07\x7f",
    "<|endoftext|> <s></s> [CLS] <unk> <0x41> <|im_start|>user<|im_end|> <|endoftext <tool>",
    "a" * 300 + "=" * 200 + " " * 150 + "b" + "\n" * 120 + "ab" * 500,
    *(
        "".join(map(chr, range(start, start + 256)))
        for start in (*range(0, 0x3200, 256), 0xAC00, 0xFE00, 0xFF00, 0x1F300)
    ),
)


class TextEncoder:
    """The ids of `tokenizers` for whole documents, as fast as it can be done with certainty.

    Text is taken as it is: nothing is added, cut or padded, and a document that spells a special token gets the ids of
    its characters. `name` is the library that encodes. Not safe to share between threads; a process has its own.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = Tokenizer.from_str(tokenizer.to_str())
        self._tokenizer.encode_special_tokens = True
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._fast = self._reproducing()
        self.name = "fastokens" if self._fast else "tokenizers"

    @property
    def vocab_size(self) -> int:
        """Added tokens included."""
        return int(self._tokenizer.get_vocab_size())

    def encode(self, texts: Sequence[str]) -> list[TokenIds]:
        """The ids of each text."""
        is_fast = [self._fast is not None and not _holds_folding_letters(text) for text in texts]
        fast = iter(self._encode_fast([text for text, easy in zip(texts, is_fast, strict=True) if easy]))
        exact = iter(self._encode_exactly([text for text, easy in zip(texts, is_fast, strict=True) if not easy]))
        return [next(fast if easy else exact) for easy in is_fast]

    def _encode_fast(self, texts: Sequence[str]) -> list[TokenIds]:
        try:
            return _encoded(self._fast, texts) if texts else []
        except (ValueError, RuntimeError):  # a limit of its engine for regular expressions
            return self._encode_exactly(texts)

    def _encode_exactly(self, texts: Sequence[str]) -> list[TokenIds]:
        encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]

    def _reproducing(self) -> Any:
        """The fast encoder, or None where it does not know the tokenizer's parts or differs on the probes."""
        probes = [text.translate(dict.fromkeys(map(ord, CASE_FOLDING_LETTERS))) for text in _PROBES]
        try:
            fast = fastokens.Tokenizer.from_json_str(self._tokenizer.to_str())
            found = _encoded(fast, probes)
        except (ValueError, RuntimeError):
            return None
        return fast if all(map(np.array_equal, found, self._encode_exactly(probes))) else None


def _holds_folding_letters(text: str) -> bool:
    return not text.isascii() and any(letter in text for letter in CASE_FOLDING_LETTERS)


def _encoded(fast: Any, texts: Sequence[str]) -> list[TokenIds]:
    ids, offsets = fast.encode_batch_flat(list(texts), add_special_tokens=False, split_special_tokens=True)
    ends = np.frombuffer(offsets, dtype="<u8").astype(np.int64)[1:-1]
    return np.split(np.frombuffer(ids, dtype="<u4").astype(np.uint32, copy=False), ends)

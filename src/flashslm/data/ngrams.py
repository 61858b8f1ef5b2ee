"""Word n-grams of a text as 64-bit hashes, by numpy over whole texts.

A word is a run of letters and digits in lower case; a character of a script without blanks (Han, kana, Thai, …) is a
word by itself.
"""

from collections.abc import Iterable, Iterator
from functools import cache

import numpy as np
from numpy.typing import NDArray

_LETTER, _ALONE = 1, 2
_SCRIPTS_WITHOUT_BLANKS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x9FFF))
_BEYOND_PLANE_0 = (0x20000, 0x323AF)  # Han
_LONGEST_WORD = 256  # characters, after which their places count again from the first
_TOGETHER = 1 << 20  # characters of texts whose words are hashed by one call
_BASE = 0x9E3779B97F4A7C15  # odd: 2^64 over the golden ratio


def word_hashes(text: str) -> NDArray[np.uint64]:
    """uint64 [words] of a text without lone surrogates, in their order."""
    return _words(text.lower())[0]


def ngram_hashes_of_each(texts: Iterable[str], n: int) -> Iterator[NDArray[np.uint64]]:
    """`ngram_hashes` of each text's words, those of many texts together: short ones cost calls of numpy alone.

    No run of words crosses from one text to the next.
    """
    group, size = list[str](), 0
    for text in texts:
        group.append(text.lower())
        size += len(text)
        if size >= _TOGETHER:
            yield _ngrams_within(group, n)
            group, size = [], 0
    if group:
        yield _ngrams_within(group, n)


def _ngrams_within(texts: list[str], n: int) -> NDArray[np.uint64]:
    """Of texts in lower case."""
    words, begins = _words("\n".join(texts))
    text_of = np.searchsorted(np.cumsum([len(text) + 1 for text in texts]), begins, side="right")
    hashes = ngram_hashes(words, n)
    return np.asarray(hashes[text_of[: len(hashes)] == text_of[len(text_of) - len(hashes) :]])


def _words(text: str) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Hash and place of each word of a text in lower case."""
    codes = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    kinds = _kinds()[codes]
    before = np.concatenate([[0], kinds[:-1]])
    is_word = kinds > 0
    starts = (is_word & ((before == 0) | (kinds == _ALONE) | (before == _ALONE)))[is_word]
    first = np.flatnonzero(starts)
    if not len(first):
        return np.empty(0, dtype=np.uint64), first
    letters = codes[is_word].astype(np.uint64)
    places = np.arange(len(letters)) - np.repeat(first, np.diff(first, append=len(letters)))
    hashes = mixed(np.add.reduceat(mixed(letters) * _powers()[places % _LONGEST_WORD], first))
    return hashes, np.flatnonzero(is_word)[first]


def ngram_hashes(words: NDArray[np.uint64], n: int) -> NDArray[np.uint64]:
    """uint64 [words - n + 1] of all runs of `n` words; none of a text that has fewer."""
    count = len(words) - n + 1
    if count < 1:
        return np.empty(0, dtype=np.uint64)
    total = np.zeros(count, dtype=np.uint64)
    for place in range(n):
        total = total * np.uint64(_BASE) + words[place : place + count]
    return mixed(total)


def mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The splitmix64 finaliser (Steele, Lea, Flood 2014): 64 bits in, 64 well-mixed bits out."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@cache
def _kinds() -> NDArray[np.uint8]:
    kinds = np.fromiter((_LETTER if chr(code).isalnum() else 0 for code in range(0x110000)), dtype=np.uint8)
    for first, last in (*_SCRIPTS_WITHOUT_BLANKS, _BEYOND_PLANE_0):
        kinds[first : last + 1] *= _ALONE
    return kinds


@cache
def _powers() -> NDArray[np.uint64]:
    return np.array([pow(_BASE, place, 2**64) for place in range(_LONGEST_WORD)], dtype=np.uint64)

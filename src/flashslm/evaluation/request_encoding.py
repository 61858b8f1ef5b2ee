"""Token ids of the harness's texts, encoded together before it asks for them one by one, and of their ends."""

import logging
import re
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, NamedTuple

from flashslm.data.encoding import TextEncoder, TokenIds

_log = logging.getLogger(__name__)

ENCODED_TOGETHER = 8192  # texts


class TextEnds(NamedTuple):
    """The token that begins every text, and those that end one. Published models may have a token for each."""

    begin_id: int
    end_ids: Collection[int]


class RequestEncoder:
    """The ids of `tokenizer(text, add_special_tokens=False)`, a PreTrainedTokenizerFast.

    The fast encoder takes special tokens for text, so what may hold an added token is left to the tokenizer.
    """

    def __init__(self, tokenizer: Any):
        self._tokenizer = tokenizer
        self._known: dict[str, TokenIds] = {}  # as arrays: lists take eight times the memory

    def ids(self, text: str) -> list[int]:
        if (known := self._known.get(text)) is not None:
            found: list[int] = known.tolist()
            return found
        return self._by_tokenizer([text])[0]

    @contextmanager
    def encoded_together(self, pairs: Iterable[tuple[str, str]]) -> Iterator[None]:
        """The texts of these pairs of context and continuation are known meanwhile."""
        started = time.perf_counter()
        texts = list(dict.fromkeys(text for pair in pairs for text in texts_to_encode(*pair)))
        for first in range(0, len(texts), ENCODED_TOGETHER):
            self._encode(texts[first : first + ENCODED_TOGETHER])
        _log.info(f"{len(texts):,} texts encoded in {time.perf_counter() - started:.1f} s")
        try:
            yield
        finally:
            self._known.clear()

    def _encode(self, texts: Sequence[str]) -> None:
        """What the fast encoder cannot take stays unknown."""
        plain = [text for text in texts if not self._added_token.search(text)]
        self._known |= zip(plain, self._fast.encode(plain), strict=True)

    def _by_tokenizer(self, texts: list[str]) -> list[list[int]]:
        ids: list[list[int]] = self._tokenizer(texts, add_special_tokens=False)["input_ids"]
        return ids

    @cached_property
    def _fast(self) -> TextEncoder:
        return TextEncoder(self._tokenizer.backend_tokenizer)

    @cached_property
    def _added_token(self) -> re.Pattern[str]:
        """Matches every text in which an added token may be found."""
        added = self._tokenizer.added_tokens_decoder.values()
        if self._tokenizer.backend_tokenizer.normalizer and any(token.normalized for token in added):
            return re.compile("")  # found in the normalised text, which is not known here
        return re.compile("|".join(re.escape(token.content) for token in added) or "(?!)")


def texts_to_encode(context: str, continuation: str) -> Iterator[str]:
    """What the harness encodes for a request: the continuation alone where nothing stands before it, else the context
    without the spaces at its end, which it counts for the continuation, and both together.
    """
    if context:
        yield context.rstrip()
        yield context + continuation
    else:
        yield continuation

"""Stop strings in a text that grows token by token, and the text in pieces as it grows."""

from collections.abc import Collection, Sequence
from typing import Any

_SPARE_TOKENS = 4  # a window may begin within a character of up to four bytes
INCOMPLETE = "\N{REPLACEMENT CHARACTER}"  # what bytes that are not yet a character decode to


class StopStrings:
    """Looks for texts at the end of a generation, in as many of its last tokens as a stop can span.

    A token adds at least a byte, so a stop that the last token completes lies within its own size in bytes. Decoding
    the whole text after each token would take the square of its length.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], end_ids: Collection[int]):
        self.tokenizer, self.stops, self.end_ids = tokenizer, stops, end_ids
        self.window = max((len(stop.encode()) for stop in stops), default=0) + _SPARE_TOKENS

    def has_ended(self, ids: Sequence[int]) -> bool:
        """Whether the last token ends the document or completes a stop. To be asked after every token."""
        if ids[-1] in self.end_ids:
            return True
        text = self.tokenizer.decode(list(ids[-self.window :])) if self.stops else ""
        return any(stop in text for stop in self.stops)

    def text(self, ids: Sequence[int]) -> str:
        """The generated text up to the first stop."""
        text: str = self.tokenizer.decode([i for i in ids if i not in self.end_ids])
        return min((text.split(stop)[0] for stop in self.stops), key=len, default=text)


class TextStream:
    """The text of one generation in pieces, which joined are `StopStrings.text` of its tokens.

    A piece ends before bytes of an incomplete character and before what may be the beginning of a stop.
    """

    def __init__(self, stops: StopStrings):
        self.stops = stops
        self.ids: list[int] = []
        self.has_ended = False  # by a stop or the end of the document
        self._sent = 0  # characters
        self._held = ""  # decoded, not sent
        self._first = self._decoded = 0  # tokens: where the window for decoding begins, and how far pieces reach

    def push(self, token_id: int) -> str:
        """Append a token; the piece of text that is certain with it, perhaps empty."""
        self.ids.append(token_id)
        if self.stops.has_ended(self.ids):
            self.has_ended = True
            return self.rest()
        self._held += self._decode_new()
        certain = len(self._held) - self._beginning_of_a_stop()
        piece, self._held = self._held[:certain], self._held[certain:]
        self._sent += len(piece)
        return piece

    def rest(self) -> str:
        """What is left to send when no token follows."""
        piece = self.stops.text(self.ids)[self._sent :]
        self._sent += len(piece)
        return piece

    def _decode_new(self) -> str:
        """The text that the tokens since the last whole character add to the few before them."""
        decode = self.stops.tokenizer.decode
        text: str = decode(self.ids[self._first :])
        if text.endswith(INCOMPLETE):
            return ""
        before = len(decode(self.ids[self._first : self._decoded]))
        self._first, self._decoded = self._decoded, len(self.ids)
        return text[before:]

    def _beginning_of_a_stop(self) -> int:
        """Characters at the end of the held text with which a stop begins."""
        most = len(self._held)  # a stop may be as long as a request's body
        begun = (
            n for stop in self.stops.stops for n in range(1, min(len(stop), most + 1)) if self._held.endswith(stop[:n])
        )
        return max(begun, default=0)

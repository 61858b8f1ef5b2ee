"""Stop strings in a text that grows token by token."""

from collections.abc import Sequence
from typing import Any

_SPARE_TOKENS = 4  # a window may begin within a character of up to four bytes


class StopStrings:
    """Looks for texts at the end of a generation, in as many of its last tokens as a stop can span.

    A token adds at least a byte, so a stop that the last token completes lies within its own size in bytes. Decoding
    the whole text after each token would take the square of its length.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str], end_id: int):
        self.tokenizer, self.stops, self.end_id = tokenizer, stops, end_id
        self.window = max((len(stop.encode()) for stop in stops), default=0) + _SPARE_TOKENS

    def has_ended(self, ids: Sequence[int]) -> bool:
        """Whether the last token ends the document or completes a stop. To be asked after every token."""
        if ids[-1] == self.end_id:
            return True
        text = self.tokenizer.decode(list(ids[-self.window :])) if self.stops else ""
        return any(stop in text for stop in self.stops)

    def text(self, ids: Sequence[int]) -> str:
        """The generated text up to the first stop."""
        text: str = self.tokenizer.decode([i for i in ids if i != self.end_id])
        return min((text.split(stop)[0] for stop in self.stops), key=len, default=text)

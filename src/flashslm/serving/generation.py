"""One request on its way through the batch, and what comes of it: pieces of text, then its end."""

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal, NamedTuple

from flashslm.inference.sampling import Sampling
from flashslm.inference.stops import TextStream

FinishReason = Literal["stop", "length"]


class TokenScore(NamedTuple):
    """Natural logarithms of probabilities before temperature: the token's, and those of the most likely tokens."""

    token_id: int
    log_probability: float
    most_likely: list[tuple[int, float]]


class TextPiece(NamedTuple):
    """A token was chosen: the text that is certain with it, perhaps empty."""

    text: str
    score: TokenScore | None


class Finished(NamedTuple):
    reason: FinishReason


class Failed(NamedTuple):
    message: str


GenerationEvent = TextPiece | Finished | Failed


@dataclass(eq=False)
class Generation:
    """A prompt to continue. `emit` takes its events in the engine's thread; after Finished or Failed none follows."""

    prompt_ids: list[int]
    max_new_tokens: int
    sampling: Sampling
    stream: TextStream
    emit: Callable[[GenerationEvent], None]
    most_likely: int | None = None  # how many tokens beside the chosen one to score; None: no scores
    is_cancelled: bool = False
    began: float = field(default_factory=perf_counter)  # seconds, as perf_counter counts
    last_token_at: float = 0.0

    @property
    def new_tokens(self) -> int:
        """Generated tokens, the end of the text left out."""
        ids = self.stream.ids
        return len(ids) - (bool(ids) and ids[-1] in self.stream.stops.end_ids)

    @property
    def is_complete(self) -> bool:
        return self.stream.has_ended or len(self.stream.ids) == self.max_new_tokens

    def cancel(self) -> None:
        """Its client is gone: the row is freed before the next step."""
        self.is_cancelled = True

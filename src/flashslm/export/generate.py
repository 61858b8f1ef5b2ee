"""Continue a text with an exported model, by the project's own decode engine."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from flashslm.config import WeightFormat
from flashslm.export.text_model import TextModel
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.sampling import GREEDY, Sampling
from flashslm.inference.stops import TextStream


def generate_text(
    directory: Path,
    prompt: str,
    max_new_tokens: int,
    *,
    stops: Sequence[str] = (),
    sampling: Sampling = GREEDY,
    weights: WeightFormat | None = None,
    on_text: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Return `text` (the continuation), `finish_reason`, `prompt_tokens`, `new_tokens` and `time_s`, that of prefill
    and decoding.

    A text ends before the end-of-text token and before the first of `stops` ("stop"), or with `max_new_tokens`
    ("length"). `weights` are those that the directory names, unless they are given. `on_text` is given the prompt when
    the model is loaded, then each piece of the continuation as it comes. Raises ValueError for a directory without a
    model, and when prompt and continuation exceed the model's positions.
    """
    text_model = TextModel.open(directory)
    stream = TextStream(text_model.stop_strings(stops))
    prompt_ids = text_model.encode(prompt)
    context = len(prompt_ids) + max_new_tokens
    if context > text_model.text_positions:
        raise ValueError(
            f"prompt ({len(prompt_ids)} tokens) and max_new_tokens {max_new_tokens} exceed "
            f"{text_model.text_positions} tokens"
        )
    engine = DecodeEngine(text_model.load(), 1, context, sampling, weights or text_model.weights)
    on_text(prompt)
    started, pieces = perf_counter(), []
    for piece in _pieces(engine, prompt_ids, max_new_tokens, stream):
        pieces.append(piece)
        on_text(piece)
    return {
        "text": "".join(pieces),
        "finish_reason": "stop" if stream.has_ended else "length",
        "prompt_tokens": len(prompt_ids),
        "new_tokens": len([token for token in stream.ids if token not in text_model.end_ids]),
        "time_s": perf_counter() - started,
    }


def _pieces(engine: DecodeEngine, prompt_ids: list[int], max_new_tokens: int, stream: TextStream) -> Iterator[str]:
    """Decode until the stream has ended or has `max_new_tokens`; its pieces of text."""
    yield stream.push(int(engine.prefill(torch.tensor([prompt_ids]))))
    while not stream.has_ended and len(stream.ids) < max_new_tokens:
        yield stream.push(int(engine.step()))
    if not stream.has_ended:
        yield stream.rest()

"""Answers in the form of OpenAI's API: whole ones and the chunks of a stream."""

import time
import uuid
from collections.abc import Sequence
from typing import Any

from tokenizers import Tokenizer

from flashslm.inference.stops import INCOMPLETE
from flashslm.serving.generation import FinishReason, Generation, TokenScore


class Reply:
    """One answer; its parts share an id. `object_name` and `chunk_name` are what the API calls them."""

    prefix, object_name, chunk_name = "", "", ""

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"
        self.created, self.model, self.tokenizer = int(time.time()), model, tokenizer

    def whole(self, text: str, scores: Sequence[TokenScore] | None, reason: FinishReason) -> dict[str, Any]:
        return self._enveloped(self.object_name, [self._choice(text, scores, reason)])

    def chunk(self, text: str, score: TokenScore | None, reason: FinishReason | None = None) -> dict[str, Any]:
        scores = None if score is None else [score]
        return self._enveloped(self.chunk_name, [self._chunk_choice(text, scores, reason)])

    def first(self) -> list[dict[str, Any]]:
        """Chunks before the first text."""
        return []

    def usage_chunk(self, generation: Generation) -> dict[str, Any]:
        return self._enveloped(self.chunk_name, []) | {"usage": usage(generation)}

    def _enveloped(self, name: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {"id": self.id, "object": name, "created": self.created, "model": self.model, "choices": choices}

    def _choice(self, text: str, scores: Sequence[TokenScore] | None, reason: FinishReason | None) -> dict[str, Any]:
        raise NotImplementedError

    def _chunk_choice(
        self, text: str, scores: Sequence[TokenScore] | None, reason: FinishReason | None
    ) -> dict[str, Any]:
        return self._choice(text, scores, reason)

    def _token(self, token_id: int) -> str:
        """A token by itself; one that is part of a character shows as a replacement character."""
        text: str = self.tokenizer.decode([token_id], skip_special_tokens=False)
        return text


class CompletionReply(Reply):
    prefix, object_name, chunk_name = "cmpl", "text_completion", "text_completion"

    def __init__(self, model: str, tokenizer: Tokenizer) -> None:
        super().__init__(model, tokenizer)
        self.offset = 0  # characters of the scored tokens so far

    def _choice(self, text: str, scores: Sequence[TokenScore] | None, reason: FinishReason | None) -> dict[str, Any]:
        logprobs = None if scores is None else self._logprobs(scores)
        return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, scores: Sequence[TokenScore]) -> dict[str, Any]:
        tokens, offsets = [self._token(score.token_id) for score in scores], []
        for token in tokens:
            offsets.append(self.offset)
            self.offset += len(token)
        return {
            "tokens": tokens,
            "token_logprobs": [score.log_probability for score in scores],
            "top_logprobs": [self._by_text(score) for score in scores],
            "text_offset": offsets,
        }

    def _by_text(self, score: TokenScore) -> dict[str, float]:
        """Of tokens that show alike the most likely one."""
        return {self._token(token): value for token, value in reversed(score.most_likely)}


class ChatReply(Reply):
    prefix, object_name, chunk_name = "chatcmpl", "chat.completion", "chat.completion.chunk"

    def first(self) -> list[dict[str, Any]]:
        start = {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
        return [self._enveloped(self.chunk_name, [start])]

    def _choice(self, text: str, scores: Sequence[TokenScore] | None, reason: FinishReason | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text}
        return {"index": 0, "message": message, "logprobs": self._logprobs(scores), "finish_reason": reason}

    def _chunk_choice(
        self, text: str, scores: Sequence[TokenScore] | None, reason: FinishReason | None
    ) -> dict[str, Any]:
        delta = {"content": text} if text or scores else {}
        return {"index": 0, "delta": delta, "logprobs": self._logprobs(scores), "finish_reason": reason}

    def _logprobs(self, scores: Sequence[TokenScore] | None) -> dict[str, Any] | None:
        if scores is None:
            return None
        content = [
            self._entry(score.token_id, score.log_probability)
            | {"top_logprobs": [self._entry(token, value) for token, value in score.most_likely]}
            for score in scores
        ]
        return {"content": content}

    def _entry(self, token_id: int, log_probability: float) -> dict[str, Any]:
        token = self._token(token_id)
        known = None if INCOMPLETE in token else list(token.encode())
        return {"token": token, "logprob": log_probability, "bytes": known}


def usage(generation: Generation) -> dict[str, int]:
    """Tokens: the prompt's include the token that begins every text, the new ones leave out the one that ends it."""
    prompt, new = len(generation.prompt_ids), generation.new_tokens
    return {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}

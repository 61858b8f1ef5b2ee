"""Continuations of held-out documents: whose beginnings, how far, by which tokens."""

from pathlib import Path
from typing import Any

import pytest
import torch

from flashslm.data.loader import TokenLoader
from flashslm.evaluation import samples
from flashslm.evaluation.samples import continue_documents, document_beginnings
from flashslm.models.hybrid import HybridLM


@pytest.fixture
def loader(dataset: Path) -> TokenLoader:
    return TokenLoader(dataset, "validation", 32, 4, seed=0)


class Stream:
    """A split of documents; 0 ends each."""

    end_of_document_id = 0

    def __init__(self, *documents: list[int]) -> None:
        self._tokens = torch.tensor([token for document in documents for token in [*document, 0]])

    def tokens(self, start: int, stop: int) -> torch.Tensor:
        return self._tokens[start:stop]


def test_beginnings_are_those_of_documents_that_are_long_enough() -> None:
    stream: Any = Stream([1, 2, 3], [4, 5], [6, 7, 8, 9], [10, 11, 12], [13, 14, 15])
    assert document_beginnings(stream, 3) == [[1, 2, 3], [6, 7, 8], [10, 11, 12]]
    assert document_beginnings(stream, 5) == []


class Engine:
    """Counts on from a prompt's last token; its third one ends the text."""

    def __init__(self, model: Any, batch_size: int, max_context: int) -> None:
        self.max_context = max_context

    def generate(self, tokens_BT: torch.Tensor, new_tokens: int) -> torch.Tensor:
        assert tokens_BT.shape[1] + new_tokens <= self.max_context and (tokens_BT[:, 0] == 0).all()
        ids = tokens_BT[:, -1:] + torch.arange(1, new_tokens + 1)
        ids[:, 2] = 0
        return ids


class Words:
    def decode(self, ids: list[int]) -> str:
        return " ".join(map(str, ids))


def test_a_continuation_ends_before_the_end_of_the_text(monkeypatch: pytest.MonkeyPatch, model: HybridLM) -> None:
    monkeypatch.setattr(samples, "DecodeEngine", Engine)
    monkeypatch.setattr(samples, "PROMPT_TOKENS", 2)
    stream: Any = Stream([1, 2, 3], [4], [5, 6])
    words: Any = Words()
    assert continue_documents(model, stream, words) == [
        {"prompt": "1 2", "continuation": "3 4"},
        {"prompt": "5 6", "continuation": "7 8"},
    ]
    assert continue_documents(model, Stream([1]), words) == []  # type: ignore[arg-type]


def test_a_model_continues_the_documents_of_a_split(model: HybridLM, loader: TokenLoader) -> None:
    class Letters(Words):
        def decode(self, ids: list[int]) -> str:
            return "".join(chr(97 + i % 26) for i in ids)

    letters: Any = Letters()
    found = continue_documents(model, loader, letters)
    assert found == continue_documents(model, loader, letters), "greedy: the same again"
    positions = model.architecture.max_position_embeddings - model.architecture.num_meta_tokens
    length = min(32, positions // 3)
    assert [len(sample["prompt"]) for sample in found] == [length] * len(found) and found
    assert all(len(sample["continuation"]) < positions - length for sample in found)

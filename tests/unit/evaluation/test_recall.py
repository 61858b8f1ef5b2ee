"""Facts and pairs stand where they should, once; a model that recalls is perfect, one that does not is at chance."""

import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from flashslm.data.loader import TokenLoader
from flashslm.evaluation import recall
from flashslm.evaluation.associative_recall import PAIRS, plant_pairs
from flashslm.evaluation.recall import RecallTask, evaluate_recall, hide_facts
from flashslm.models.hybrid import HybridLM

LENGTH, SAMPLES = 700, 10


@pytest.fixture
def loader(dataset: Path) -> TokenLoader:
    return TokenLoader(dataset, "validation", 32, 4, seed=0)


@pytest.fixture
def tokenizer(dataset: Path) -> Tokenizer:
    return Tokenizer.from_file(str(dataset / "tokenizer" / "tokenizer.json"))


class Reader:
    """In place of ContinuousBatch: answers what the text says of the key that is asked for."""

    knows = True

    def __init__(self, model: Tokenizer, batch_size: int, max_context: int):
        self.tokenizer, self.max_context = model, max_context

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, _: Callable[[Sequence[int]], bool]
    ) -> list[list[int]]:
        assert all(len(prompt) + new_tokens == self.max_context for prompt in prompts)
        return [self.tokenizer.encode(self._answer(self.tokenizer.decode(list(p)))).ids[:new_tokens] for p in prompts]

    def _answer(self, text: str) -> str:
        (key,) = set(re.findall(r"for (\S+) in the text above is:$", text))
        (value,) = re.findall(rf"s for {key} is: (\S+)\.", text)
        return f" {value}." if self.knows else " 1234567"


@pytest.mark.parametrize("task", ["single_1", "single_2", "single_3"])
def test_a_reader_finds_every_fact_and_a_guesser_none(
    loader: TokenLoader, tokenizer: Tokenizer, task: RecallTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "ContinuousBatch", Reader)
    asked, items = evaluate_recall(tokenizer, loader, tokenizer, task, LENGTH, SAMPLES, seed=0)  # type: ignore[arg-type]
    assert items["accuracy"].value == 1.0 and asked["by_depth"] == [1.0] * 8
    assert (asked["task"], asked["length"], asked["samples"]) == (task, LENGTH, SAMPLES)
    again = evaluate_recall(tokenizer, loader, tokenizer, task, LENGTH, SAMPLES, seed=0)  # type: ignore[arg-type]
    other = evaluate_recall(tokenizer, loader, tokenizer, task, LENGTH, SAMPLES, seed=1)  # type: ignore[arg-type]
    assert again[1]["accuracy"].items_sha256 == items["accuracy"].items_sha256 != other[1]["accuracy"].items_sha256
    monkeypatch.setattr(Reader, "knows", False)
    _, items = evaluate_recall(tokenizer, loader, tokenizer, task, LENGTH, SAMPLES, seed=0)  # type: ignore[arg-type]
    assert items["accuracy"].value == 0.0


def test_facts_stand_at_spread_depths(loader: TokenLoader, tokenizer: Tokenizer) -> None:
    for task in ("single_1", "single_2", "single_3"):
        facts, answer_tokens = hide_facts(loader, tokenizer, task, 1500, SAMPLES, seed=0)
        shares = []
        for fact in facts:
            text = tokenizer.decode(fact.prompt)
            assert len(fact.prompt) + answer_tokens == 1500 and text.count(fact.answer) == 1
            shares.append(text.index(fact.answer) / len(text))
        assert all(b > a - 0.02 for a, b in pairwise(shares)) and shares[0] < 0.3 and shares[-1] > 0.6


class Seen(NamedTuple):
    tokens_BT: Tensor


class Associator(torch.nn.Module):
    """Predicts what followed the last earlier occurrence of a token, else token 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding.from_pretrained(torch.eye(300))  # hidden states are the logits

    def prefix_states(self) -> list[Any]:
        return [Seen(torch.zeros(1, 0, dtype=torch.int64))]

    def extend(self, tokens_BT: Tensor, states: list[Any], start: int) -> tuple[Tensor, list[Any]]:
        whole_BT = torch.cat([states[0].tokens_BT, tokens_BT], dim=1)
        hidden_BTV = torch.zeros(*whole_BT.shape, 300)
        for row, tokens in enumerate(whole_BT.tolist()):
            followers: dict[int, int] = {}
            for place, token in enumerate(tokens):
                hidden_BTV[row, place, followers.get(token, 1)] = 10.0
                if place + 1 < len(tokens):
                    followers[token] = tokens[place + 1]
        return hidden_BTV[:, start:], [Seen(whole_BT)]


def test_pairs_are_the_only_places_of_their_keys(loader: TokenLoader) -> None:
    tokens_ST, order_SQ = plant_pairs(loader, 300, 300, 5, seed=0)
    assert tokens_ST.shape == (5, 300) and order_SQ.shape == (5, PAIRS)
    for tokens, order in zip(tokens_ST.tolist(), order_SQ.tolist(), strict=True):
        text, queries = tokens[: -2 * PAIRS], tokens[-2 * PAIRS :]
        places = []
        for key, value in zip(queries[::2], queries[1::2], strict=True):
            (place,) = [i for i, token in enumerate(text) if token == key]
            assert text[place + 1] == value
            places.append(place)
        assert [sorted(places).index(place) for place in places] == order


def test_associative_recall_of_one_that_recalls_and_of_one_that_does_not(
    loader: TokenLoader, tokenizer: Tokenizer, model: HybridLM
) -> None:
    asked, items = evaluate_recall(Associator(), loader, tokenizer, "mqar", 300, 9, seed=0)  # type: ignore[arg-type]
    assert items["accuracy"].totals == (1.0,) * 9 and asked["by_depth"] == [1.0] * 8
    _, items = evaluate_recall(model, loader, tokenizer, "mqar", 100, 9, seed=0)
    assert items["accuracy"].value < 0.2


def test_what_does_not_fit_is_refused(loader: TokenLoader, tokenizer: Tokenizer) -> None:
    with pytest.raises(ValueError, match=r"single_2 of 100 tokens has no place.*: \d+ are missing"):
        hide_facts(loader, tokenizer, "single_2", 100, 2, seed=0)
    with pytest.raises(ValueError, match="mqar of 60 tokens has no place for its 16 pairs: at least 81"):
        plant_pairs(loader, 300, 60, 2, seed=0)

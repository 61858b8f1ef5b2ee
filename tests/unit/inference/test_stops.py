import random
from typing import Any

import pytest
from tokenizers import Tokenizer

from flashslm.data.tokenizer import train_tokenizer
from flashslm.inference.stops import StopStrings, TextStream
from tests.unit.data.corpora import make_texts

END = {0}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(make_texts(150), 300)


def ids_of(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


@pytest.mark.parametrize("stops", [["\n\n"], [" river", "é"], ["the cat sleeps"], ["日本", "</s>"]])
def test_a_window_finds_a_stop_with_the_token_that_completes_it(tokenizer: Tokenizer, stops: list[str]) -> None:
    """Texts in which stops stand, cut into single bytes and into the tokenizer's own tokens."""
    rng = random.Random(1)
    words = ["the", " cat", " sleeps", " river", "\n", "é", "日", "本", "</s>", " blue"]
    found = 0
    for number in range(40):
        text = "".join([*rng.choices(words, k=12), stops[0] * (number % 2), *rng.choices(words, k=12)])
        by_byte = [i for character in text for i in ids_of(tokenizer, character)]
        for ids in (ids_of(tokenizer, text), by_byte):
            watch = StopStrings(tokenizer, stops, END)
            ended = next((n for n in range(1, len(ids) + 1) if watch.has_ended(ids[:n])), None)
            whole = (n for n in range(1, len(ids) + 1) if any(s in tokenizer.decode(ids[:n]) for s in stops))
            assert ended == next(whole, None)
            if ended:
                found += 1
                assert watch.text(ids[:ended]) == min((text.split(stop)[0] for stop in stops), key=len)
    assert found > 10


def test_the_end_of_the_document_ends_a_text_and_is_not_part_of_it(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, "the cat")
    watch = StopStrings(tokenizer, [], END)
    assert not watch.has_ended(ids) and watch.has_ended([*ids, *END])
    assert watch.text([*ids, *END]) == "the cat"


def test_the_work_per_token_does_not_grow_with_the_text(tokenizer: Tokenizer) -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return ""

    counting = Counting()
    StopStrings(counting, ["abc"], END).has_ended([5] * 1000)
    assert counting.longest == 7


@pytest.mark.parametrize("stops", [[], ["\n\n"], [" river", "é"], ["the cat sleeps"], ["日本"]])
def test_pieces_joined_are_the_text_and_none_is_taken_back(tokenizer: Tokenizer, stops: list[str]) -> None:
    """Characters of several tokens, single bytes that are none, stops and their beginnings, cut at any token."""
    rng = random.Random(2)
    words = ["the", " cat", " sleeps", " river", "\n", "é", "日", "本", "\U0001f40e", " blue"]
    bytes_alone = ids_of(tokenizer, "日\U0001f40e")
    ended = 0
    for _ in range(60):
        parts = [*rng.choices(words, k=10), stops[0] if stops and rng.random() < 0.5 else "", *rng.choices(words, k=4)]
        ids = [i for part in parts for i in ids_of(tokenizer, part)]
        ids[3:3] = rng.sample(bytes_alone, k=rng.randrange(3))
        length, pieces = rng.randrange(len(ids) // 2, len(ids) + 1), []
        stream = TextStream(StopStrings(tokenizer, stops, END))
        for token in ids[:length]:
            pieces.append(stream.push(token))
            if stream.has_ended:
                break
        expected = stream.stops.text(stream.ids)
        assert expected.startswith("".join(pieces))
        assert "".join([*pieces, stream.rest()]) == expected
        ended += stream.has_ended
    assert ended > 5 or not stops


def test_a_piece_comes_with_each_word(tokenizer: Tokenizer) -> None:
    stream = TextStream(StopStrings(tokenizer, ["catalogue"], END))
    pieces = [stream.push(token) for token in ids_of(tokenizer, "the cat sleeps")]
    assert "".join(pieces) == "the cat sleeps" and sum(map(bool, pieces)) > 2


def test_a_stop_that_is_longer_than_the_text_costs_no_more_than_the_text(tokenizer: Tokenizer) -> None:
    class Counting(str):
        slices = 0

        def __getitem__(self, key: Any) -> str:
            self.slices += 1
            return super().__getitem__(key)

    stop = Counting("catalogue " * 1000)
    stream = TextStream(StopStrings(tokenizer, [stop], END))
    ids = ids_of(tokenizer, "the cat sleeps")
    assert "".join([*map(stream.push, ids), stream.rest()]) == "the cat sleeps"
    assert 0 < stop.slices <= len(ids) * len("the cat sleeps")

import random
from pathlib import Path
from typing import Any

import pytest

from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation.stops import StopStrings

END = 0


@pytest.fixture(scope="module")
def tokenizer(dataset: Path) -> Any:
    return load_tokenizer(dataset / "tokenizer")


@pytest.mark.parametrize("stops", [["\n\n"], [" river", "é"], ["the cat sleeps"], ["日本", "</s>"]])
def test_a_window_finds_a_stop_with_the_token_that_completes_it(tokenizer: Any, stops: list[str]) -> None:
    """Texts in which stops stand, cut into single bytes and into the tokenizer's own tokens."""
    rng = random.Random(1)
    words = ["the", " cat", " sleeps", " river", "\n", "é", "日", "本", "</s>", " blue"]
    found = 0
    for number in range(40):
        text = "".join([*rng.choices(words, k=12), stops[0] * (number % 2), *rng.choices(words, k=12)])
        by_byte = [i for character in text for i in tokenizer(character, add_special_tokens=False)["input_ids"]]
        for ids in (tokenizer(text, add_special_tokens=False)["input_ids"], by_byte):
            watch = StopStrings(tokenizer, stops, END)
            ended = next((n for n in range(1, len(ids) + 1) if watch.has_ended(ids[:n])), None)
            whole = (n for n in range(1, len(ids) + 1) if any(s in tokenizer.decode(ids[:n]) for s in stops))
            assert ended == next(whole, None)
            if ended:
                found += 1
                assert watch.text(ids[:ended]) == min((text.split(stop)[0] for stop in stops), key=len)
    assert found > 10


def test_the_end_of_the_document_ends_a_text_and_is_not_part_of_it(tokenizer: Any) -> None:
    ids = tokenizer("the cat", add_special_tokens=False)["input_ids"]
    watch = StopStrings(tokenizer, [], END)
    assert not watch.has_ended(ids) and watch.has_ended([*ids, END])
    assert watch.text([*ids, END]) == "the cat"


def test_the_work_per_token_does_not_grow_with_the_text(tokenizer: Any) -> None:
    class Counting:
        longest = 0

        def decode(self, ids: list[int]) -> str:
            self.longest = max(self.longest, len(ids))
            return ""

    counting = Counting()
    StopStrings(counting, ["abc"], END).has_ended([5] * 1000)
    assert counting.longest == 7

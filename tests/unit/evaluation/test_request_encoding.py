"""Texts of requests that are encoded together have the ids that the tokenizer gives them one by one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lm_eval.api.model import TemplateLM
from tokenizers import AddedToken, normalizers

from flashslm.data.encoding import TextEncoder
from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation import request_encoding
from flashslm.evaluation.lm_eval_adapter import HybridLMAdapter
from flashslm.evaluation.request_encoding import RequestEncoder
from flashslm.models.hybrid import HybridLM

PAIRS = [
    ("the dogs", " sleeps quietly"),
    ("the dogs", " river"),  # a context that comes again
    ("the river often  \n ", "seven"),  # its end belongs to the continuation
    ("   ", "blue"),
    ("", "green stone"),
    ("", "<|endoftext|>seven cats"),  # begins with the token that would stand before it
    ("the <|endoftext|>", " dogs<|endoftext|>"),
    ("naïve “七” 👍🏽 \u017f", " x\u00a0y"),
    ("seven", ""),
]
WITH_ADDED_TOKEN = 3  # texts


@pytest.fixture
def tokenizer(dataset: Path) -> Any:
    return load_tokenizer(dataset / "tokenizer")


@pytest.fixture
def fast_texts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The batches that the fast encoder was given."""
    given: list[list[str]] = []
    encode = TextEncoder.encode

    def count(self: TextEncoder, texts: list[str]) -> Any:
        given.append(texts)
        return encode(self, texts)

    monkeypatch.setattr(TextEncoder, "encode", count)
    return given


def test_the_harness_s_pairs_are_those_of_one_by_one(
    model: HybridLM, tokenizer: Any, fast_texts: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter, pairs = HybridLMAdapter(model, tokenizer), []
    monkeypatch.setattr(adapter, "_loglikelihood_tokens", lambda requests, **_: pairs.append(requests) or [])
    monkeypatch.setattr(request_encoding, "ENCODED_TOGETHER", 8)
    requests = [SimpleNamespace(args=pair) for pair in PAIRS]
    TemplateLM.loglikelihood(adapter, requests, disable_tqdm=True)  # text by text
    assert not fast_texts
    adapter.loglikelihood(requests)
    one_by_one, together = pairs
    assert together == one_by_one
    assert together[5][1:] == ([0], tokenizer("seven cats")["input_ids"])
    assert all(type(token) is int for _, *parts in together for part in parts for token in part)
    texts = {text for pair in PAIRS for text in request_encoding.texts_to_encode(*pair)}
    assert len(fast_texts) == 2
    assert len(texts) == sum(map(len, fast_texts)) + WITH_ADDED_TOKEN


def test_no_text_is_kept(tokenizer: Any) -> None:
    encoder = RequestEncoder(tokenizer)
    with pytest.raises(RuntimeError), encoder.encoded_together([("the", " dogs")]):
        assert encoder._known.keys() == {"the", "the dogs"}
        raise RuntimeError
    assert not encoder._known


@pytest.mark.parametrize("special", [True, False])
def test_added_tokens_are_found_as_the_tokenizer_finds_them(tokenizer: Any, special: bool) -> None:
    tokenizer.add_tokens([AddedToken("[+]", special=special, normalized=False)])
    texts = ["the [+] dogs", "the [++] dogs"]
    encoder = RequestEncoder(tokenizer)
    with encoder.encoded_together([("", text) for text in texts]):
        assert [encoder.ids(text) for text in texts] == tokenizer(texts)["input_ids"]
        assert encoder._known.keys() == {texts[1]}


def test_a_token_that_appears_by_normalising_is_found(tokenizer: Any) -> None:
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.add_tokens([AddedToken("dogs", normalized=True)])
    encoder = RequestEncoder(tokenizer)
    with encoder.encoded_together([("The", " DOGS")]):
        assert encoder.ids("The DOGS") == tokenizer("The DOGS")["input_ids"]
        assert encoder.ids("The DOGS")[-1] == len(tokenizer) - 1

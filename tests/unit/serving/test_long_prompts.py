"""Prompts that are far too long: they are refused before they are encoded, and encoding holds nothing else up."""

import asyncio
import json
import math
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.requests import Request
from tokenizers import AddedToken, Tokenizer, normalizers, pre_tokenizers

from flashslm.export.text_model import TextModel
from flashslm.export.token_bound import longest_token_bytes
from flashslm.serving.app import Endpoints
from flashslm.serving.chat import ChatTemplate
from flashslm.serving.protocol import MOST_MESSAGES, ApiError, ChatRequest, parse
from tests.unit.serving.client import Client

LONG = "the cat and the hat " * 250_000  # 5 MB


class NoEncoding:
    """A tokenizer that must not encode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def __getattr__(self, name: str) -> Any:
        assert not name.startswith("encode"), "the prompt was encoded"
        return getattr(self.tokenizer, name)


@pytest.fixture
def endpoints(chat_directory: Path) -> Endpoints:
    opened = TextModel.open(chat_directory)
    text_model = replace(opened, tokenizer=NoEncoding(opened.tokenizer))
    scheduler: Any = SimpleNamespace(batch=SimpleNamespace(max_context=4096))
    return Endpoints(text_model, scheduler, ChatTemplate(text_model), "m", 0)


def request(body: dict[str, Any]) -> Request:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": json.dumps({"model": "m"} | body).encode()}

    return Request({"type": "http", "headers": [(b"content-type", b"application/json")]}, receive)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"prompt": LONG}, "the prompt has at least "),
        ({"prompt": LONG, "max_tokens": 5}, "tokens and 5 are to follow: at most 4096 fit"),
        ({"prompt": [1] * 100_000}, "the prompt has 100000 tokens and 1 are to follow: at most 4096 fit"),
        ({"messages": [{"role": "user", "content": LONG}]}, "the prompt has at least "),
        ({"messages": [{"role": "user", "content": "the cat " * 100}] * 1000}, "the prompt has at least "),
    ],
    ids=["text", "text and new tokens", "ids", "message", "messages"],
)
def test_too_long_a_prompt_is_refused_before_it_is_encoded(
    endpoints: Endpoints, body: dict[str, Any], message: str
) -> None:
    handler = endpoints.chat_completions if "messages" in body else endpoints.completions
    with pytest.raises(ApiError) as refusal:
        asyncio.run(handler(request(body)))
    assert refusal.value.status == 400 and message in str(refusal.value)
    assert refusal.value.body["error"]["code"] == "context_length_exceeded"


def test_the_server_says_so(client: Client) -> None:
    for answer in (client.complete(LONG), client.complete([1] * 100_000)):
        assert answer.status == 400 and answer.body["error"]["code"] == "context_length_exceeded"
    assert client.complete("a", max_tokens=1).status == 200


@pytest.mark.parametrize("parts", [False, True])
def test_more_messages_or_parts_than_a_chat_has(parts: bool) -> None:
    part, message = {"type": "text", "text": "a"}, {"role": "user", "content": "a"}
    many = MOST_MESSAGES + 1
    messages = [{"role": "user", "content": [part] * many}] if parts else [message] * many
    with pytest.raises(ApiError, match="List should have at most 10000 items"):
        parse(ChatRequest, json.dumps({"model": "m", "messages": messages}).encode())


@pytest.fixture
def thread_by_thread() -> Iterator[None]:
    """Python changes to another thread only where the running one lets it."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1000.0)
    yield
    sys.setswitchinterval(interval)


def test_other_threads_run_while_a_prompt_is_encoded(directory: Path, thread_by_thread: None) -> None:
    text_model, waiting, begin, ran = TextModel.open(directory), threading.Event(), threading.Event(), []

    def other() -> None:
        waiting.set()
        begin.wait()
        ran.append(True)

    thread = threading.Thread(target=other)
    thread.start()
    waiting.wait()
    begin.set()
    for _ in range(100):  # the kernel may have other work for the other thread's processor
        text_model.encode(LONG[:1_000_000])
        if ran:
            break
    seen = list(ran)
    thread.join()
    assert seen


@pytest.mark.parametrize(
    "text", ["", "a", "the cat and the hat and the bat" * 9, "a" * 999, "日本語 🙂 é", " \n\t" * 50, "<|end|>" * 40]
)
def test_no_text_has_fewer_tokens_than_the_bound(directory: Path, text: str) -> None:
    text_model = TextModel.open(directory)
    assert 1 <= text_model.fewest_tokens(text) <= len(text_model.encode(text))


def changed(tokenizer: Tokenizer, change: str) -> None:
    lossy = AddedToken("<|gap|>", lstrip=True)
    split = pre_tokenizers.Split(" ", "removed")
    changes = {
        "normalizer": lambda: setattr(tokenizer, "normalizer", normalizers.Strip()),
        "pre_tokenizer": lambda: setattr(tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace()),
        "no pre_tokenizer": lambda: setattr(tokenizer, "pre_tokenizer", None),
        "removed spaces": lambda: setattr(
            tokenizer, "pre_tokenizer", pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel()])
        ),
        "token with spaces": lambda: tokenizer.add_tokens([lossy]),
        "truncation": lambda: tokenizer.enable_truncation(5),
    }
    changes[change]()


@pytest.mark.parametrize(
    "change",
    ["normalizer", "pre_tokenizer", "no pre_tokenizer", "removed spaces", "token with spaces", "truncation"],
)
def test_a_tokenizer_that_may_leave_text_out_has_no_bound(directory: Path, change: str) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    assert 7 <= longest_token_bytes(tokenizer) < 20
    changed(tokenizer, change)
    assert longest_token_bytes(tokenizer) == math.inf


def test_a_long_added_token_and_split_words_keep_the_bound(directory: Path) -> None:
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.add_tokens([AddedToken("é" * 30)])
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "isolated"), digits, pre_tokenizers.ByteLevel(use_regex=False)]
    )
    assert longest_token_bytes(tokenizer) == 60

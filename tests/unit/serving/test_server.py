"""A real server: what it answers, also to several clients at once, and to those who go away."""

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest
import torch

from flashslm.config import WeightFormat
from flashslm.export.text_model import TextModel
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.int8_model import as_served
from tests.holding import decoding_held
from tests.unit.export.damage import change_json
from tests.unit.serving.client import JSON, Client, chunks, text_of
from tests.unit.serving.conftest import served
from tests.waiting import wait_until

Greedy = Callable[..., str]
PROMPTS = ["the cat", "a", "", "and the hat and the bat and the cat and", "bat", "the hat and the", "x", "the cat the"]


def test_models_and_health(client: Client) -> None:
    assert client.get("/health").body == {"status": "ok"}
    (model,) = client.get("/v1/models").body["data"]
    assert (model["id"], model["object"], model["max_model_len"]) == ("m", "model", 8187)
    assert client.get("/v1/models/m").body == model
    assert client.get("/v1/models/other").status == client.get("/v1/other").status == 404
    assert client.get("/v1/completions").status == 405


def test_ragged_requests_that_share_a_batch_get_what_generate_says(client: Client, greedy: Greedy) -> None:
    """More of them than rows, of different lengths, streamed and whole."""
    lengths = [5 + 7 * index for index in range(len(PROMPTS))]

    def ask(index: int) -> str:
        prompt, length = PROMPTS[index], lengths[index]
        if index % 2:
            return text_of(client.stream(prompt, max_tokens=length))
        answer = client.complete(prompt, max_tokens=length)
        assert answer.status == 200, answer.body
        return str(answer.body["choices"][0]["text"])

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        texts = list(pool.map(ask, range(len(PROMPTS))))
    assert texts == [greedy(prompt, length) for prompt, length in zip(PROMPTS, lengths, strict=True)]
    assert len(set(texts)) == len(texts)


def test_an_answer_has_its_counts_and_reason(client: Client, endless: str) -> None:
    body = client.complete(endless, max_tokens=9).body
    prompt_tokens = body["usage"]["prompt_tokens"]
    assert body["usage"] == {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": 9,
        "total_tokens": prompt_tokens + 9,
    }
    assert (body["object"], body["model"], body["choices"][0]["finish_reason"]) == ("text_completion", "m", "length")
    assert client.complete(endless).body["usage"]["completion_tokens"] == 16
    ids = client.complete([[0, *range(5, 9)]], max_tokens=1).body
    assert ids["usage"]["prompt_tokens"] == 5


def test_a_stream_comes_piece_by_piece(client: Client, endless: str, greedy: Greedy) -> None:
    *pieces, last, counts = client.stream(endless, max_tokens=20, stream_options={"include_usage": True})
    assert len(pieces) > 5 and all(piece["choices"][0]["finish_reason"] is None for piece in pieces)
    assert text_of(iter(pieces)) == greedy(endless, 20)
    assert last["choices"][0]["finish_reason"] == "length"
    assert counts["choices"] == [] and counts["usage"]["completion_tokens"] == 20
    assert len({chunk["id"] for chunk in (*pieces, last, counts)}) == 1


@pytest.mark.parametrize("as_list", [True, False])
def test_a_text_ends_before_a_stop(client: Client, endless: str, greedy: Greedy, as_list: bool) -> None:
    whole = greedy(endless, 40)
    stop = whole[8:10]
    stops: Any = ["no such text", stop] if as_list else stop
    choice = client.complete(endless, max_tokens=40, stop=stops).body["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole.split(stop)[0], "stop")
    assert text_of(client.stream(endless, max_tokens=40, stop=stops)) == choice["text"]


def test_a_seed_decides_whatever_shares_the_batch(client: Client) -> None:
    def sample(seed: int | None) -> str:
        answer = client.complete("the", max_tokens=24, temperature=1.2, top_p=0.95, seed=seed)
        return str(answer.body["choices"][0]["text"])

    alone = sample(7)
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(sample, (7, 8, 7, None)))
    assert texts[0] == texts[2] == alone
    assert len({*texts, sample(None)}) == 4


def test_a_directory_says_which_weights_it_is_served_with(directory: Path, tmp_path: Path) -> None:
    """Until an option says something else."""
    int8 = shutil.copytree(directory, tmp_path / "int8")
    change_json(int8 / "config.json", served_weights="int8")
    text_model = TextModel.open(int8)
    prompt_BT, found = torch.tensor([text_model.encode("the cat")]), []
    options: dict[WeightFormat, tuple[str, ...]] = {"int8": (), "full": ("--weights", "full")}
    for weights, given in options.items():
        with torch.inference_mode():
            model = as_served(text_model.load(), weights)
            expected = model.logits(model(prompt_BT))[0, -1].log_softmax(-1).max().item()
        with served(int8, "--max-batch-size", "2", *given) as (client, _):
            scores = client.complete("the cat", max_tokens=1, logprobs=0).body["choices"][0]["logprobs"]
        found.append(scores["token_logprobs"][0])
        assert found[-1] == pytest.approx(expected, abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-4


def test_scores_are_the_models(client: Client, directory: Path, endless: str) -> None:
    text_model = TextModel.open(directory)
    prompt, model = text_model.encode(endless), text_model.load()
    tokens = DecodeEngine(model, 1, 64).generate(torch.tensor([prompt]), 6)[0].tolist()
    with torch.inference_mode():
        states_BTD = model(torch.tensor([prompt + tokens]))
        expected_TV = model.logits(states_BTD)[0, len(prompt) - 1 : -1].log_softmax(-1)
    scores = client.complete(endless, max_tokens=6, logprobs=3).body["choices"][0]["logprobs"]
    chosen = expected_TV.gather(1, torch.tensor(tokens)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(scores["token_logprobs"]), chosen, rtol=1e-3, atol=1e-3)
    assert [max(top.values()) for top in scores["top_logprobs"]] == scores["token_logprobs"]
    assert scores["tokens"] == [text_model.tokenizer.decode([token]) for token in tokens]
    assert scores["text_offset"] == [sum(map(len, scores["tokens"][:n])) for n in range(6)]
    assert client.complete(endless, max_tokens=2, logprobs=0).body["choices"][0]["logprobs"]["top_logprobs"] == [{}, {}]
    scored = [chunk["choices"][0]["logprobs"] for chunk in client.stream(endless, max_tokens=6, logprobs=3)][:-1]
    assert [number for chunk in scored for number in chunk["token_logprobs"]] == scores["token_logprobs"]
    assert [offset for chunk in scored for offset in chunk["text_offset"]] == scores["text_offset"]


def cancelled(client: Client) -> float:
    return client.metric('flashslm_requests_ended_total{outcome="cancelled"}')


def test_a_client_that_goes_away_frees_its_row(directory: Path, endless: str) -> None:
    """In the middle of a stream, before a whole answer, and out of the queue."""
    with served(directory, "--max-batch-size", "1") as (client, _):
        request = client.request(endless, max_tokens=8000)
        with client.open("POST", "/v1/completions", request | {"stream": True}) as response:
            assert response.readline().startswith(b"data: ")
            leaving = [HTTPConnection(client.address) for _ in range(2)]
            for connection in leaving:
                connection.request("POST", "/v1/completions", json.dumps(request), JSON)
            wait_until(lambda: client.metric("flashslm_requests_waiting") == 2)
            leaving[0].close()
            wait_until(lambda: cancelled(client) == 1)
        wait_until(lambda: cancelled(client) == 2 and client.metric("flashslm_requests_waiting") == 0)
        assert client.metric("flashslm_requests_running") == 1
        leaving[1].close()
        wait_until(lambda: cancelled(client) == 3)
        assert client.metric("flashslm_requests_running") == 0
        assert client.complete(endless, max_tokens=4).status == 200


def test_more_than_may_wait_are_refused_with_a_time(directory: Path, endless: str) -> None:
    with served(directory, "--max-batch-size", "1", "--max-waiting", "1") as (client, _):
        body = client.request(endless, max_tokens=8000, stream=True)
        with client.open("POST", "/v1/completions", body) as running:
            assert running.readline().startswith(b"data: ")
            with ThreadPoolExecutor(4) as pool:
                answers = pool.map(lambda _: client.complete(endless, max_tokens=2), range(4))
                wait_until(lambda: client.metric('flashslm_requests_refused_total{status="429"}') == 3)
                running.close()
                statuses = sorted(answers, key=lambda answer: answer.status)
        assert [answer.status for answer in statuses] == [200, 429, 429, 429]
        refused = statuses[-1]
        assert int(refused.headers["retry-after"]) >= 1 and "try again in" in refused.body["error"]["message"]
        assert client.complete(endless, max_tokens=2).status == 200


def test_sigterm_finishes_what_runs_and_takes_no_more(
    directory: Path, endless: str, greedy: Greedy, tmp_path: Path
) -> None:
    hold = tmp_path / "hold"
    with served(directory, "--max-batch-size", "1", **decoding_held(hold)) as (client, process):
        body = client.request(endless, max_tokens=40, stream=True)
        hold.touch()  # the text does not end before the signal
        with client.open("POST", "/v1/completions", body) as running, ThreadPoolExecutor(1) as pool:
            queued = pool.submit(client.complete, endless, max_tokens=3)
            wait_until(lambda: client.metric("flashslm_requests_waiting") == 1)
            process.terminate()
            wait_until(lambda: refuses(client))
            hold.unlink()
            assert text_of(chunks(running)) == greedy(endless, 40)
            assert queued.result().body["choices"][0]["text"] == greedy(endless, 3)
        assert process.wait(300) == 0


def refuses(client: Client) -> bool:
    """A connection that waited to be accepted when the port was closed is reset."""
    try:
        client.get("/health")
    except ConnectionError:
        return True
    return False


def test_what_takes_too_long_to_finish_is_cut_off(directory: Path, endless: str) -> None:
    with served(directory, "--drain-s", "1") as (client, process):
        request = client.request(endless, max_tokens=8000, stream=True)
        with client.open("POST", "/v1/completions", request) as running:
            assert running.readline().startswith(b"data: ")
            process.terminate()
            assert process.wait(300) == 0
            assert b"data: [DONE]" not in rest_of(running), "the whole text takes a quarter of a minute"


def rest_of(response: HTTPResponse) -> bytes:
    """What still came before the connection was cut."""
    try:
        return response.read()
    except IncompleteRead as cut:
        return cut.partial


def test_a_key_guards_all_but_health(directory: Path) -> None:
    with served(directory, "--host", "0.0.0.0", FLASHSLM_API_KEY="a-long-secret-key") as (anyone, _):
        known = Client(f"http://{anyone.address}", headers={"Authorization": "Bearer a-long-secret-key"})
        wrong = Client(f"http://{anyone.address}", headers={"Authorization": "Bearer another"})
        assert anyone.get("/health").status == 200
        for path in ("/v1/models", "/metrics"):
            assert (anyone.get(path).status, wrong.get(path).status, known.get(path).status) == (401, 401, 200)
        assert wrong.complete("a").body["error"]["code"] == "invalid_api_key"
        assert known.complete("a", max_tokens=1).status == 200


def test_chat_follows_the_template(chat_directory: Path, greedy: Greedy) -> None:
    with served(chat_directory) as (client, _):
        answer = client.chat("hi", [{"type": "text", "text": "the "}, {"type": "text", "text": "cat"}], max_tokens=12)
        assert answer.status == 200, answer.body
        asked = {"max_tokens": 12, "temperature": 0}
        choice = client.chat("hi", "the cat", **asked, logprobs=True, top_logprobs=2).body["choices"][0]
        expected = greedy("[user] hi\n[user] the cat\n[assistant]", 12)
        assert choice["message"] == {"role": "assistant", "content": expected}
        assert len(choice["logprobs"]["content"][0]["top_logprobs"]) == 2
        messages = [{"role": "user", "content": "hi"}, {"role": "user", "content": "the cat"}]
        body = {"model": "m", "messages": messages, "stream": True, **asked}
        with client.open("POST", "/v1/chat/completions", body) as response:
            first, *pieces, last = chunks(response)
        assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
        assert "".join(piece["choices"][0]["delta"]["content"] for piece in pieces) == expected
        assert (last["object"], last["choices"][0]["delta"]) == ("chat.completion.chunk", {})
        refused = client.chat("refuse").body["error"]
        assert "refuses these messages: not this one" in refused["message"] and refused["param"] == "messages"

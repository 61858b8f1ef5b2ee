import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation import task_index
from flashslm.evaluation.harness import Asked, run_tasks
from flashslm.evaluation.lm_eval_adapter import HybridLMAdapter, _generation_arguments
from flashslm.evaluation.request_encoding import TextEnds
from flashslm.models.hybrid import HybridLM

PAIRS = [
    ("the dogs", " sleeps quietly"),
    ("the river often ", "seven"),
    ("", "green stone"),
    ("seven cats <3 " * 12, "the cat"),  # longer than 64 tokens: its beginning is lost
    ("blue", " x"),
]


def requests(*arguments: Any) -> list[Any]:
    return [SimpleNamespace(args=args) for args in arguments]


@pytest.fixture(scope="module")
def tokenizer(dataset: Path) -> Any:
    return load_tokenizer(dataset / "tokenizer")


@pytest.fixture
def adapter(model: HybridLM, tokenizer: Any) -> HybridLMAdapter:
    return HybridLMAdapter(model, tokenizer, batch_size=3)


@torch.no_grad()
def brute_force(model: HybridLM, ids: list[int], scored: int) -> tuple[float, bool]:
    """Log-probability of the last `scored` ids, one forward pass of at most 64 tokens for each."""
    nats, greedy = 0.0, True
    kept = ids[-65:]
    for place in range(len(kept) - scored, len(kept)):
        log_probs = model.logits(model(torch.tensor([kept[:place]]))[0, -1]).double().log_softmax(-1)
        nats += float(log_probs[kept[place]])
        greedy &= int(log_probs.argmax()) == kept[place]
    return nats, greedy


def test_loglikelihood_is_the_brute_force_one(adapter: HybridLMAdapter, model: HybridLM, tokenizer: Any) -> None:
    found = adapter.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for (context, continuation), (nats, greedy) in zip(PAIRS, found, strict=True):
        whole = [0, *tokenizer(context + continuation)["input_ids"]]
        shown = 1 + len(tokenizer(context.rstrip())["input_ids"])
        expected, expected_greedy = brute_force(model, whole, len(whole) - shown)
        assert math.isclose(nats, expected, rel_tol=1e-4)
        assert greedy == expected_greedy


def test_greedy_continuation_is_recognised(adapter: HybridLMAdapter, model: HybridLM) -> None:
    with torch.no_grad():
        best = int(model.logits(model(torch.tensor([[0, 7, 8]]))[0, -1]).argmax())
    scored = adapter._loglikelihood_tokens([(("", ""), [0, 7, 8], [best]), (("", ""), [0, 7, 8], [best - 1])])
    assert [greedy for _, greedy in scored] == [True, False]


def test_rolling_scores_every_token_once(adapter: HybridLMAdapter, model: HybridLM, tokenizer: Any) -> None:
    short, long = "the river sleeps", "seven dogs sleeps under the blue stone often " * 14
    found = adapter.loglikelihood_rolling(requests((short,), (long,), ("",)))
    ids = tokenizer(long)["input_ids"]
    assert 128 < len(ids) < 192
    windows = [([0, *ids[:64]], 64), (ids[63:128], 64), (ids[-65:], len(ids) - 128)]  # the last has full context too
    expected = sum(brute_force(model, window, scored)[0] for window, scored in windows)
    short_ids = tokenizer(short)["input_ids"]
    assert found == pytest.approx([brute_force(model, [0, *short_ids], len(short_ids))[0], expected, 0.0], rel=1e-4)


@torch.no_grad()
def greedy_ids(model: HybridLM, ids: list[int], count: int) -> list[int]:
    for _ in range(count):
        ids = [*ids, int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax())]
    return ids[-count:]


def test_generation_is_greedy_and_stops(adapter: HybridLMAdapter, model: HybridLM, tokenizer: Any) -> None:
    contexts = ["the dogs", "blue river", "x", "the dogs", "quietly the", "seven <3 " * 20]
    prompts = [adapter.tok_encode(context)[-52:] for context in contexts]  # 64 places, 12 of them for the answer
    expected = [tokenizer.decode(greedy_ids(model, prompt, 12)) for prompt in prompts]
    free = {"until": [], "max_gen_toks": 12}
    assert "<|endoftext|>" not in "".join(expected)
    assert adapter.generate_until(requests(*((c, free) for c in contexts))) == expected
    stop = expected[0][5:7]
    stopped = adapter.generate_until(requests((contexts[0], {"until": stop, "max_gen_toks": 12}), (contexts[2], free)))
    assert stopped == [expected[0].split(stop)[0], expected[2]]


@pytest.mark.parametrize(
    ("given", "tokens", "stops", "sampling"),
    [
        ({}, 256, [], {"temperature": 0.0}),
        ({"until": ["\n", ""]}, 256, ["\n"], {"temperature": 0.0}),
        ({"until": None, "max_new_tokens": 9}, 9, [], {"temperature": 0.0}),
        ({"until": "x", "max_tokens": 8, "temperature": 0.5}, 8, ["x"], {"temperature": 0.5}),
        ({"until": [None, "y"], "max_gen_toks": 7, "max_new_tokens": 9}, 7, ["y"], {"temperature": 0.0}),
        ({"do_sample": False, "temperature": 0.7}, 256, [], {"temperature": 0.0}),
        ({"do_sample": True, "temperature": 0.7, "top_k": 5}, 256, [], {"temperature": 0.7, "top_k": 5}),
    ],
)
def test_generation_arguments_are_the_harness_s(
    given: dict[str, Any], tokens: int, stops: list[str], sampling: dict[str, Any]
) -> None:
    expected = {"max_gen_toks": tokens, "until": stops, "sampling": sampling}
    assert _generation_arguments(given) == expected


def test_empty_stops_null_and_max_new_tokens_generate(adapter: HybridLMAdapter, tokenizer: Any) -> None:
    row = greedy_ids(adapter.model, adapter.tok_encode("the dogs"), 6)
    contexts = [{"until": ["", None]}, {"until": None}, {}]
    found = adapter.generate_until(requests(*(("the dogs", c | {"max_new_tokens": 6}) for c in contexts)))
    assert found == [tokenizer.decode(row)] * 3


def test_generation_ends_with_the_document(adapter: HybridLMAdapter) -> None:
    row = greedy_ids(adapter.model, adapter.tok_encode("the dogs"), 6)
    end = next(place for place in range(1, 6) if row[place] not in row[:place])
    for end_ids in ({row[end]}, {299, row[end]}):
        ending = HybridLMAdapter(adapter.model, adapter.tokenizer, ends=TextEnds(0, end_ids))
        (text,) = ending.generate_until(requests(("the dogs", {"max_gen_toks": 6})))
        assert text == adapter.tokenizer.decode(row[:end])


def test_texts_begin_with_the_token_that_is_given(model: HybridLM, tokenizer: Any) -> None:
    """Published models may begin texts with another token than the one that ends them."""
    adapter, ids = HybridLMAdapter(model, tokenizer, ends=TextEnds(5, {0})), tokenizer("the dogs")["input_ids"]
    expected = brute_force(model, [5, *ids], len(ids))[0]
    assert adapter.loglikelihood(requests(("", "the dogs")))[0][0] == pytest.approx(expected, rel=1e-4)
    assert adapter.loglikelihood_rolling(requests(("the dogs",))) == pytest.approx([expected], rel=1e-4)
    (text,) = adapter.generate_until(requests(("the dogs", {"max_gen_toks": 4})))
    assert text == tokenizer.decode(greedy_ids(model, [5, *ids], 4))


def test_what_does_not_fit_is_refused(adapter: HybridLMAdapter) -> None:
    with pytest.raises(ValueError, match=r"continuation of 65 tokens exceeds max_length 64, .*: leave the task out"):
        adapter._loglikelihood_tokens([(("", ""), [0], [5] * 65)])
    with pytest.raises(ValueError, match="max_gen_toks 64 leaves no positions for a prompt: below 64 is allowed"):
        adapter.generate_until(requests(("x", {"max_gen_toks": 64})))


@pytest.fixture
def task_directory(tmp_path: Path) -> Path:
    """A multiple-choice task over a local JSONL file."""
    documents = [
        {"question": "the dogs", "choices": [" sleeps", " river", " blue stone"], "answer": 0},
        {"question": "seven green", "choices": [" stone", " often", " x"], "answer": 1},
        {"question": "quietly", "choices": [" the", " under", " cat"], "answer": 2},
        {"question": "under the blue", "choices": [" house", " river", " seven"], "answer": 0},
    ]
    (tmp_path / "choice.jsonl").write_text("".join(json.dumps(d) + "\n" for d in documents))
    (tmp_path / "choice.yaml").write_text(
        f"""task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {tmp_path / "choice.jsonl"}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
target_delimiter: ""
metric_list:
  - metric: acc
metadata:
  version: 2
"""
    )
    return tmp_path


def test_a_task_gives_the_accuracy_of_brute_force(
    model: HybridLM, tokenizer: Any, task_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = [json.loads(line) for line in (task_directory / "choice.jsonl").read_text().splitlines()]

    def is_right(d: dict[str, Any]) -> bool:
        scores = []
        for choice in d["choices"]:
            ids = [0, *tokenizer(d["question"] + choice)["input_ids"]]
            scores.append(brute_force(model, ids, len(ids) - 1 - len(tokenizer(d["question"])["input_ids"]))[0])
        return scores.index(max(scores)) == d["answer"]

    right = [is_right(d) for d in documents]
    result, items = run_tasks(model, tokenizer, Asked(["local_choice"], include_path=task_directory))
    found = result["local_choice"]
    assert found["acc"] == sum(right) / 4
    assert found["acc_stderr"] == pytest.approx((sum(right) / 4 * (1 - sum(right) / 4) / 3) ** 0.5)
    assert (found["samples"], found["version"], found["shots"]) == (4, 2, 0)
    assert items["local_choice"]["acc"].totals == tuple(map(float, right))
    assert "alias" not in found
    limited, _ = run_tasks(model, tokenizer, Asked(["local_choice"], 3, task_directory))
    assert limited["local_choice"]["acc"] == pytest.approx(sum(right[:3]) / 3)
    assert capsys.readouterr().out == ""


def test_a_task_named_by_its_file_is_the_same_task(model: HybridLM, tokenizer: Any, task_directory: Path) -> None:
    (file,) = task_directory.glob("*.yaml")
    by_name = run_tasks(model, tokenizer, Asked(["local_choice"], include_path=task_directory))
    assert run_tasks(model, tokenizer, Asked([str(file)])) == by_name


def test_unknown_task_is_refused_with_near_names(
    model: HybridLM, tokenizer: Any, task_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(task_index, "index_of", lambda names: {})  # all of lm_eval's own take seconds
    with pytest.raises(ValueError, match=r"no task local_choise; did you mean local_choice"):
        run_tasks(model, tokenizer, Asked(["local_choise"], include_path=task_directory))


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, "flashslm.evaluation.lm_eval_adapter")
    with pytest.raises(ImportError, match=r"flashslm\[evaluation\]"):
        importlib.import_module("flashslm.evaluation.lm_eval_adapter")

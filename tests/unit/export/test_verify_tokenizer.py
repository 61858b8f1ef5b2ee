"""verify-export on the tokenizer's files and the generation config: what they must say because config.json does."""

import json

import pytest

from flashslm.export.verify import verify_export
from tests.unit.export.damage import change_json


def template(*tokens, special_id=0):
    first = [{"SpecialToken": {"id": "<|end|>", "type_id": 0}} if t == "end" else TEXT for t in tokens]
    special = {"<|end|>": {"id": "<|end|>", "ids": [special_id], "tokens": ["<|end|>"]}}
    return {"type": "TemplateProcessing", "single": first, "pair": [TEXT, PAIR], "special_tokens": special}


TEXT, PAIR = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")


@pytest.mark.parametrize(
    ("post_processor", "made"),
    [
        (None, "[65]"),
        (template("text"), "[65]"),
        (template("end", "text", "end"), "[0, 65, 0]"),
        (template("text", "end"), "[65, 0]"),
        (template("end", "text", special_id=270), "[270, 65]"),
    ],
    ids=["none", "nothing added", "end appended", "end alone appended", "a memory token"],
)
def test_a_text_that_does_not_begin_as_in_training_is_found(post_processor, made, directory):
    change_json(directory / "tokenizer.json", post_processor=post_processor)
    assert [str(problem) for problem in verify_export(directory)] == [
        f"tokenizer.json: its post_processor makes {made} of a text's [65]: expected [0, 65], the bos id first"
    ]


@pytest.mark.parametrize("length", [None, 0, -1, 252, 10**30, 1e30, True, "251"], ids=str)
def test_more_text_than_there_are_positions_for_is_found(length, directory):
    change_json(directory / "tokenizer_config.json", model_max_length=length)
    assert [str(problem) for problem in verify_export(directory)] == [
        f"tokenizer_config.json: model_max_length is {length!r}: expected 1 to 251, "
        "the positions less the memory tokens"
    ]


def test_less_text_than_there_are_positions_for_is_a_choice(directory):
    change_json(directory / "tokenizer_config.json", model_max_length=250)
    assert verify_export(directory) == []


@pytest.mark.parametrize("role", ["bos_token", "eos_token", "pad_token"])
@pytest.mark.parametrize(("token", "found"), [(None, None), ("!", 1), ("<nope>", None), ({"content": "!"}, 1)], ids=str)
def test_the_special_tokens_map_must_agree(role, token, found, directory):
    change_json(directory / "special_tokens_map.json", **{role: token})
    assert [str(problem) for problem in verify_export(directory)] == [
        f"special_tokens_map.json: {role} has id {found}, config.json's {role}_id is 0"
    ]


@pytest.mark.parametrize(
    ("ids", "name", "expected"),
    [
        (range(265, 271), "<x_{}>", "271 tokens, vocab_size is 270"),
        (range(265, 267), "<mem_{}>", "it has <mem_265>, <mem_266>"),
    ],
    ids=["too long", "memory tokens"],
)
def test_a_tokenizer_that_shifts_the_memory_tokens_is_found(ids, name, expected, directory):
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    first = tokenizer["added_tokens"][0]
    tokenizer["added_tokens"] += [first | {"id": i, "content": name.format(i)} for i in ids]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    (problem,) = verify_export(directory)
    assert str(problem).startswith(f"tokenizer.json: {expected}")


def test_gaps_between_the_tokenizers_ids_are_found(directory):
    tokenizer = json.loads((directory / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    last = max(vocabulary, key=vocabulary.get)
    vocabulary[last] = 268
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert [str(p) for p in verify_export(directory)] == [
        "tokenizer.json: its ids end at 268 and have gaps: the memory tokens' ids would shift"
    ]


@pytest.mark.parametrize("token", [None, "!", "<nope>", ["!"], {"lstrip": True}], ids=str)
def test_special_tokens_must_have_the_ids_of_the_config(token, directory):
    change_json(directory / "tokenizer_config.json", eos_token=token)
    ((subject, message),) = verify_export(directory)
    assert subject == "tokenizer_config.json" and message.endswith("config.json's eos_token_id is 0")


@pytest.mark.parametrize(
    ("file", "fields"),
    [
        ("tokenizer_config.json", {"additional_special_tokens": ["<|end|>", "<new>"]}),
        ("tokenizer_config.json", {"extra_special_tokens": {"image_token": "<new>"}}),
        ("tokenizer_config.json", {"added_tokens_decoder": {"265": {"content": "<new>"}}}),
        ("tokenizer_config.json", {"unk_token": "<new>"}),
        ("special_tokens_map.json", {"sep_token": "<new>"}),
    ],
    ids=str,
)
def test_a_token_that_transformers_would_add_is_found(file, fields, directory):
    from transformers import PreTrainedTokenizerFast

    assert len(PreTrainedTokenizerFast.from_pretrained(directory)) == 265
    change_json(directory / file, **fields)
    assert len(PreTrainedTokenizerFast.from_pretrained(directory)) == 266
    assert [str(problem) for problem in verify_export(directory)] == [
        f"{file}: names '<new>', which tokenizer.json does not have: the memory tokens' ids would shift"
    ]


def test_added_tokens_of_older_tokenizers_are_found(directory):
    (directory / "added_tokens.json").write_text('{"<new>": 265}')
    assert [problem.subject for problem in verify_export(directory)] == ["added_tokens.json"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("padding_side", "right"),
        ("model_input_names", None),
        ("model_input_names", ["input_ids", "token_type_ids"]),
        ("add_bos_token", False),
        ("add_eos_token", True),
    ],
    ids=str,
)
def test_what_feeds_the_model_something_else_is_found(field, value, directory):
    change_json(directory / "tokenizer_config.json", **{field: value})
    ((subject, message),) = verify_export(directory)
    assert subject == "tokenizer_config.json" and message.startswith(f"{field} is {value!r}: expected ")


def test_generation_config_must_agree(directory):
    for value in (5, False, None, 10**400):
        change_json(directory / "generation_config.json", eos_token_id=value)
        ((subject, message),) = verify_export(directory)
        assert subject == "generation_config.json" and message.startswith("eos_token_id is ") and len(message) < 120

import json
import shutil

import pytest
import torch
from tokenizers import Tokenizer

from flashslm.export.generate import generate_text
from flashslm.inference.sampling import Sampling
from tests.unit.export.damage import change_json


@pytest.fixture(scope="module")
def tokenizer(exported_dir):
    return Tokenizer.from_file(str(exported_dir / "tokenizer.json"))


def test_greedy_text_is_the_exported_models(exported_dir, exported, tokenizer):
    result = generate_text(exported_dir, "the cat", max_new_tokens=12)
    ids = tokenizer.encode("the cat").ids
    assert ids[0] == 0 not in ids[1:]  # the end-of-text token begins every text
    generated = exported.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)[0, len(ids) :].tolist()
    expected = generated[: generated.index(0)] if 0 in generated else generated
    assert result["text"] == tokenizer.decode(expected) != ""
    assert (result["prompt_tokens"], result["new_tokens"]) == (len(ids), len(expected))
    assert result["time_s"] > 0


def test_text_ends_before_the_end_token(exported_dir, exported, tokenizer, tmp_path):
    """Name a token the model will say as the end token: what comes before it is the text."""
    start = torch.tensor([[0]])
    generated = exported.generate(
        start, attention_mask=torch.ones_like(start), max_new_tokens=8, do_sample=False, eos_token_id=None
    )[0, 1:]
    end = next(i for i in range(2, 8) if generated[i] not in generated[:i])
    directory = shutil.copytree(exported_dir, tmp_path / "copy")
    for named in (int(generated[end]), [269, int(generated[end])]):  # published models may have several
        config = json.loads((directory / "config.json").read_text()) | {"eos_token_id": named}
        (directory / "config.json").write_text(json.dumps(config))
        result = generate_text(directory, "", max_new_tokens=8)
        assert (result["text"], result["new_tokens"]) == (tokenizer.decode(generated[:end].tolist()), end)


def test_sampling_follows_the_seed(exported_dir):
    texts = [
        generate_text(exported_dir, "a", 8, sampling=Sampling(temperature=1.0, seed=seed))["text"] for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize(
    ("file", "text", "expected"),
    [
        ("config.json", "{", r"config\.json is not valid JSON"),
        ("config.json", "{}", r"config\.json: .*hidden_size is missing"),
        ("tokenizer.json", "{}", r"tokenizer\.json is not a tokenizer"),
    ],
)
def test_a_damaged_directory_is_named(file, text, expected, directory):
    (directory / file).write_text(text)
    with pytest.raises(ValueError, match=expected):
        generate_text(directory, "", max_new_tokens=1)


@pytest.mark.parametrize("name", ["bos_token_id", "eos_token_id"])
@pytest.mark.parametrize("value", [None, [], "0"], ids=str)
def test_a_model_must_name_its_first_and_last_token(name, value, directory):
    change_json(directory / "config.json", **{name: value})
    with pytest.raises(ValueError, match=rf"^config\.json: {name} is .*: expected a token's id$"):
        generate_text(directory, "", max_new_tokens=1)


def test_too_long_a_request_is_refused(exported_dir):
    with pytest.raises(ValueError, match="max_new_tokens 251 exceed 251 tokens"):
        generate_text(exported_dir, "", max_new_tokens=251)


def test_bytes_that_are_not_utf8_are_refused(exported_dir):
    with pytest.raises(ValueError, match="not valid UTF-8 from character 5 on"):
        generate_text(exported_dir, "the \udcff cat", max_new_tokens=2)  # as Python reads such an argument


def test_pieces_come_with_the_tokens_and_make_the_text(exported_dir):
    pieces = []
    result = generate_text(exported_dir, "the cat", max_new_tokens=12, on_text=pieces.append)
    assert pieces[0] == "the cat" and "".join(pieces[1:]) == result["text"]
    assert len([piece for piece in pieces if piece]) > 4


def test_a_text_ends_before_a_stop(exported_dir):
    whole = generate_text(exported_dir, "the cat", max_new_tokens=12)
    assert whole["finish_reason"] == "length"
    pieces = []
    stop = whole["text"][5:7]
    result = generate_text(exported_dir, "the cat", max_new_tokens=12, stops=["never", stop], on_text=pieces.append)
    assert result["text"] == "".join(pieces[1:]) == whole["text"].split(stop)[0]
    assert result["finish_reason"] == "stop" and result["new_tokens"] < whole["new_tokens"]


def test_an_empty_stop_is_refused(exported_dir):
    with pytest.raises(ValueError, match="a stop string is empty"):
        generate_text(exported_dir, "a", max_new_tokens=1, stops=[""])

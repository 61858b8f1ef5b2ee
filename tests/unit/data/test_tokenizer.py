import json
from pathlib import Path

import pytest

from flashslm.config import DataConfig
from flashslm.data.prepare import prepare_dataset
from flashslm.data.tokenizer import copy_tokenizer, load_tokenizer, save_tokenizer, train_tokenizer
from flashslm.export.tokenizer import tokenizer_problems
from tests.unit.data.corpora import make_texts, prepare

CODE = "def f(x):\n    return 'héllo 世界  '  # \t<|endoftext|>"


def test_training_is_deterministic_and_exact_in_size(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_tokenizer(train_tokenizer(make_texts(50), 300), tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert len(load_tokenizer(tmp_path / "a")) == 300


def test_saved_directory_loads_as_a_fast_tokenizer_without_loss(tmp_path: Path) -> None:
    trained = train_tokenizer(make_texts(50), 300)
    save_tokenizer(trained, tmp_path / "t")
    loaded = load_tokenizer(tmp_path / "t")
    assert (
        json.loads((tmp_path / "t/tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    )
    assert loaded.is_fast
    assert (loaded.bos_token_id, loaded.eos_token_id, loaded.pad_token_id) == (0, 0, 0)
    assert loaded("")["input_ids"] == []  # text tokens only: nothing is added
    ids = loaded(CODE)["input_ids"]
    assert ids == trained.encode(CODE).ids
    assert loaded.decode(ids) == CODE
    assert ids.count(0) == 1  # in a prompt the special token is itself


def test_merges_are_those_of_the_most_frequent_pairs() -> None:
    tokenizer = train_tokenizer(["xyxyxyxy zq zq"], 260)
    assert json.loads(tokenizer.to_str())["model"]["merges"] == [["x", "y"], ["xy", "xy"], ["z", "q"]]
    assert tokenizer.encode("xyxyxyzq").tokens == ["xyxy", "xy", "zq"]


def test_too_little_text_names_the_reachable_vocabulary() -> None:
    with pytest.raises(
        ValueError, match=r"gives (\d+) distinct tokens of data.vocab_size 4096: lower .* to at most \1"
    ):
        train_tokenizer(["some little text, some little text"], 4096)
    with pytest.raises(ValueError, match="gives 257 distinct tokens"):  # no pair occurs twice: bytes and the end token
        train_tokenizer(["abcdefghij"], 258)


def test_copied_tokenizer_keeps_ids_and_end_token(tmp_path: Path) -> None:
    trained = train_tokenizer(make_texts(50), 300)
    save_tokenizer(trained, tmp_path / "source")
    copy, end_id = copy_tokenizer(str(tmp_path / "source"), tmp_path / "copy")
    assert end_id == 0
    assert copy.encode(CODE).ids == trained.encode(CODE).ids
    config = json.loads((tmp_path / "copy/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "is_local" not in config
    roles = json.loads((tmp_path / "copy/special_tokens_map.json").read_text())
    assert roles == json.loads((tmp_path / "source/special_tokens_map.json").read_text())
    assert load_tokenizer(tmp_path / "copy")(CODE)["input_ids"] == trained.encode(CODE).ids


def test_tokenizer_that_cannot_be_used_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"cannot be loaded .*give 'train', a directory or a hub id"):
        copy_tokenizer(str(tmp_path / "missing"), tmp_path / "copy")
    save_tokenizer(train_tokenizer(make_texts(50), 300), tmp_path / "no-end")
    facts = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "no-end/tokenizer_config.json").write_text(json.dumps(facts))
    (tmp_path / "no-end/special_tokens_map.json").unlink()
    with pytest.raises(ValueError, match="lacks an end-of-text token"):
        copy_tokenizer(str(tmp_path / "no-end"), tmp_path / "copy")


def with_gaps(directory: Path, shift: int) -> Path:
    """A tokenizer of 300 tokens whose last 30 ids are `shift` higher."""
    save_tokenizer(train_tokenizer(make_texts(50), 300), directory)
    content = json.loads((directory / "tokenizer.json").read_text())
    vocab = content["model"]["vocab"]
    content["model"]["vocab"] = {token: i + shift * (i >= 270) for token, i in vocab.items()}
    (directory / "tokenizer.json").write_text(json.dumps(content))
    return directory


@pytest.mark.parametrize("shift", [7, 70_000])
def test_ids_without_a_token_get_placeholders(tmp_path: Path, shift: int) -> None:
    source = with_gaps(tmp_path / "source", shift)
    copy, _ = copy_tokenizer(str(source), tmp_path / "copy")
    assert copy.get_vocab_size() == 300 + shift
    assert tokenizer_problems(tmp_path / "copy", 300 + shift) == []  # an export can hold it
    text = " ".join(make_texts(2))
    assert copy.encode(text).ids == load_tokenizer(source)(text)["input_ids"]
    assert max(copy.encode(text).ids) >= 270 + shift
    assert copy.decode(copy.encode(text).ids) == text
    summary = prepare(tmp_path / "data", make_texts(40), tokenizer=str(source))
    assert summary.vocab_size == 300 + shift


def test_an_id_without_bounds_is_refused_before_text_is_read(tmp_path: Path) -> None:
    source = with_gaps(tmp_path / "source", 2**31)
    config = DataConfig(source="files", paths=("/nowhere",), tokenizer=str(source))
    with pytest.raises(ValueError, match=r"has the id 2147483947: at most 4,194,304 tokens"):
        prepare_dataset(config, 0, tmp_path / "data")

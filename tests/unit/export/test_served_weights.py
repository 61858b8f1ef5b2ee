"""Exports that are served with weights of 8 bits: what the files say, and what each engine makes of it."""

import shutil

import pytest
import torch

from flashslm.config import ExportConfig
from flashslm.export.files import read_json
from flashslm.export.generate import generate_text
from flashslm.export.hf_config import ConfigMismatch
from flashslm.export.huggingface import export_huggingface
from flashslm.export.importing import load_export, read_served_weights
from flashslm.export.parity import check_parity
from flashslm.export.tensorrt_llm import export_tensorrt_llm
from flashslm.export.text_model import TextModel
from flashslm.export.verify import verify_export
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.int8_model import round_to_int8
from tests.unit.export.damage import change_json


@pytest.fixture(scope="module")
def int8_dir(model, tokenizer_dir, tmp_path_factory):
    directory = tmp_path_factory.mktemp("int8") / "model"
    export_huggingface(model, tokenizer_dir, directory, ExportConfig(dtype="float32"), weights="int8")
    return directory


def test_the_files_hold_the_weights_as_they_were_and_say_how_they_are_served(int8_dir, exported_dir, model, tokens_BT):
    assert read_json(int8_dir / "config.json") == read_json(exported_dir / "config.json") | {"served_weights": "int8"}
    for name in ("model.safetensors", "tokenizer.json", "generation_config.json"):
        assert (int8_dir / name).read_bytes() == (exported_dir / name).read_bytes()
    assert verify_export(int8_dir) == []
    assert check_parity(model, int8_dir, tokens_BT, 1e-4).num_tokens == tokens_BT.numel()  # transformers' own
    readme, other = ((directory / "README.md").read_text() for directory in (int8_dir, exported_dir))
    assert "## Weights of 8 bits" in readme and "8 bits" not in other


def test_a_bundle_says_that_its_runtime_does_not_round(int8_dir, exported_dir, tmp_path):
    export_tensorrt_llm(int8_dir, tmp_path / "bundle")
    export_tensorrt_llm(exported_dir, tmp_path / "other")
    assert verify_export(tmp_path / "bundle") == []
    assert read_served_weights(tmp_path / "bundle") == "int8"
    assert "none of 8-bit integers" in (tmp_path / "bundle" / "README.md").read_text()
    assert "8-bit" not in (tmp_path / "other" / "README.md").read_text()


def test_a_text_is_continued_with_the_weights_that_the_directory_names(int8_dir, exported_dir):
    text_model = TextModel.open(int8_dir)
    prompt_ids = text_model.encode("the cat")
    engine = DecodeEngine(round_to_int8(text_model.load()), 1, len(prompt_ids) + 40)
    ids = engine.generate(torch.tensor([prompt_ids]), 40)[0].tolist()
    ends = [place for place, token in enumerate(ids) if token in text_model.end_ids]
    expected = text_model.tokenizer.decode(ids[: ends[0]] if ends else ids)
    full = generate_text(exported_dir, "the cat", 40)["text"]
    assert generate_text(int8_dir, "the cat", 40)["text"] == expected != full
    assert generate_text(int8_dir, "the cat", 40, weights="full")["text"] == full
    assert generate_text(exported_dir, "the cat", 40, weights="int8")["text"] == expected


def test_loading_rounds_nothing(int8_dir, model):
    """So that training goes on from the weights that were trained."""
    loaded = load_export(int8_dir).state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in model.state_dict().items())


def test_another_format_is_refused(int8_dir, tmp_path):
    directory = shutil.copytree(int8_dir, tmp_path / "copy")
    change_json(directory / "config.json", served_weights="int4")
    said = "served_weights is 'int4': only 'full' or 'int8' is supported"
    assert [str(problem) for problem in verify_export(directory)] == [f"config.json: {said}"]
    for read in (load_export, TextModel.open, read_served_weights):
        with pytest.raises(ConfigMismatch, match=said):
            read(directory)

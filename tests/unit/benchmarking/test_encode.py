"""benchmarks/encode.py on a text that takes a moment."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import encode
from tests.unit.data.corpora import make_texts, write_jsonl


def test_the_record_has_both_encoders_on_the_same_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_jsonl(tmp_path / "text.jsonl", make_texts(300))
    output = tmp_path / "encode.json"
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    monkeypatch.setattr(encode, "VOCAB_SIZE", 300)
    arguments = ["encode.py", str(tmp_path / "*.jsonl"), "--megabytes", "0.02", "--repeats", "2"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--output", str(output)])
    encode.main()
    record = json.loads(output.read_text())
    assert record["same_ids"] and record["text_bytes"] == 20_000 and record["commit"] == "0123456789abcdef"
    assert record["encoder"]["library"] == "fastokens"
    for measured in (record["encoder"], record["tokenizers"]):
        assert measured["megabytes_per_s_per_core"] > 0 and len(measured["cpu_s"]) == 2

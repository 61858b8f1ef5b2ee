"""Measure text to token ids, beside `tokenizers` on the same text in the same run, and compare the ids.

    python benchmarks/encode.py FILE... [--tokenizer DIRECTORY] [--megabytes 40] [--repeats 3] [--output FILE]

FILEs are what `data.paths` takes. Without --tokenizer one of 16,384 tokens is trained on the first 6 MB. Writes
benchmarks/results/encode_<device>_<date>.json: MB/s per core (text over the CPU time of the process) and MB/s by the
clock, each the median of the repeats.
"""

import argparse
import itertools
import json
import os
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from flashslm.benchmarking.options import COUNT, DIRECTORY, OUTPUT, POSITIVE, TEXT, before_work, script_parser
from flashslm.benchmarking.record import record_facts, result_name, write_record
from flashslm.config import DataConfig
from flashslm.data.encoding import TextEncoder
from flashslm.data.pieces import BATCH_CHARACTERS
from flashslm.data.sources import read_documents
from flashslm.data.tokenizer import train_tokenizer
from flashslm.infra.state_files import require_writable

RESULTS = Path(__file__).parent / "results"
VOCAB_SIZE, TRAINING_BYTES = 16_384, 6_000_000
Encode = Callable[[list[str]], Iterable[Any]]


def read_texts(files: Sequence[str], max_bytes: int) -> list[str]:
    """The documents of the files, up to so many bytes."""
    config = DataConfig(source="files", paths=tuple(files), max_bytes=max_bytes)
    return [document.text for document in read_documents(config, seed=0)]


def find_tokenizer(directory: Path | None, files: Sequence[str]) -> Tokenizer:
    """The directory's, or one that is trained on the files. ValueError: the directory has none."""
    if directory is None:
        return train_tokenizer(read_texts(files, TRAINING_BYTES), VOCAB_SIZE)
    if not (file := directory / "tokenizer.json").is_file():
        raise ValueError(f"--tokenizer {directory}: it holds no tokenizer.json")
    return Tokenizer.from_file(str(file))


def batches(texts: list[str]) -> list[list[str]]:
    """As many texts together as prepare_data encodes at once."""
    ends = np.cumsum([len(text) for text in texts]) // BATCH_CHARACTERS
    return [
        [text for text, _ in group] for _, group in itertools.groupby(zip(texts, ends, strict=True), lambda x: x[1])
    ]


def measured(make: Callable[[], Encode], texts: list[list[str]], num_bytes: int, repeats: int) -> dict[str, Any]:
    """Speeds of encoding all the batches, each time by a new encoder, which remembers no words of the text yet."""
    clock_s, cpu_s = [], []
    for _ in range(repeats):
        encode = make()
        started, started_cpu = time.perf_counter(), time.process_time()
        for batch in texts:
            encode(batch)
        clock_s.append(time.perf_counter() - started)
        cpu_s.append(time.process_time() - started_cpu)
    return {
        "megabytes_per_s_per_core": round(num_bytes / 1e6 / statistics.median(cpu_s), 2),
        "megabytes_per_s": round(num_bytes / 1e6 / statistics.median(clock_s), 2),
        "cpu_s": [round(value, 3) for value in cpu_s],
    }


def make_parser() -> argparse.ArgumentParser:
    parser = script_parser(__doc__)
    parser.add_argument("files", nargs="+", type=TEXT)
    parser.add_argument("--tokenizer", type=DIRECTORY)
    parser.add_argument("--megabytes", type=POSITIVE, default=40)
    parser.add_argument("--repeats", type=COUNT, default=3)
    parser.add_argument("--output", type=OUTPUT)
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    parser = make_parser()
    given = parser.parse_args(arguments)
    facts = record_facts("cpu")
    with before_work(parser):
        output = require_writable(given.output or RESULTS / f"{result_name('encode', 'cpu')}.json")
        texts = read_texts(given.files, int(given.megabytes * 1e6))
        tokenizer = find_tokenizer(given.tokenizer, given.files)
    encoder, num_bytes, parts = TextEncoder(tokenizer), sum(len(text.encode()) for text in texts), batches(texts)

    def peer() -> Encode:
        own = Tokenizer.from_str(tokenizer.to_str())
        own.encode_special_tokens = True
        return lambda batch: [encoding.ids for encoding in own.encode_batch_fast(batch, add_special_tokens=False)]

    same = all(
        ids.tolist() == known
        for batch in parts
        for ids, known in zip(encoder.encode(batch), peer()(batch), strict=True)
    )
    record = {
        **facts,
        "text_bytes": num_bytes,
        "documents": len(texts),
        "vocab_size": tokenizer.get_vocab_size(),
        "load_average_1_5_15_minutes": os.getloadavg(),
        "same_ids": same,
        "encoder": {
            "library": encoder.name,
            **measured(lambda: TextEncoder(tokenizer).encode, parts, num_bytes, given.repeats),
        },
        "tokenizers": measured(peer, parts, num_bytes, given.repeats),
    }
    write_record(output, record)
    print(json.dumps({name: record[name] for name in ("same_ids", "encoder", "tokenizers")}), "->", output)


if __name__ == "__main__":
    main()

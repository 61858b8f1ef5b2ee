"""A task of lm-evaluation-harness with its questions, in files: choices of four words after a text."""

import json
from pathlib import Path

from tests.unit.data.corpora import WORDS, make_texts

CHOICE = """task: choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {directory}/choice.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: answer
doc_to_choice: choices
metric_list: [{metrics}]
"""


def write_choice_task(directory: Path, questions: int, *metrics: str) -> Path:
    """Write choice.yaml, which names the task `choice`, and its questions beside it; the file of the task."""
    rows = [
        {"question": text, "choices": list(WORDS[i % 8 : i % 8 + 4]), "answer": i % 4}
        for i, text in enumerate(make_texts(questions, words=6))
    ]
    (directory / "choice.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    named = ", ".join(f"{{metric: {metric}}}" for metric in metrics)
    task = directory / "choice.yaml"
    task.write_text(CHOICE.format(directory=directory, metrics=named))
    return task

"""Exported tiny models, and real servers of them on free ports."""

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flashslm.export.generate import generate_text
from tests.unit.export import conftest as exports
from tests.unit.serving.client import Client

one_thread, architecture, make_model = exports.one_thread, exports.architecture, exports.make_model
tokenizer_dir, export = exports.tokenizer_dir, exports.export

SERVE = [sys.executable, "-m", "flashslm", "serve"]
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("FLASHSLM_")}
ENVIRONMENT |= {"OMP_NUM_THREADS": "1"}
TEMPLATE = (
    "{% for message in messages %}{% if message.content == 'refuse' %}{{ raise_exception('not this one') }}{% endif %}"
    "[{{ message.role }}] {{ message.content }}\n{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
)


@pytest.fixture(scope="session")
def directory(export: Any, make_model: Any, architecture: Any) -> Path:
    """A model with places for answers that outlast a test."""
    long = architecture.model_copy(update={"max_position_embeddings": 8192})
    return export(make_model(long), dtype="float32")


@pytest.fixture(scope="session")
def chat_directory(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    copy = shutil.copytree(directory, tmp_path_factory.mktemp("chat") / "model")
    (copy / "chat_template.jinja").write_text(TEMPLATE)
    return copy


@pytest.fixture(scope="session")
def endless(directory: Path) -> str:
    """A prompt whose greedy text does not end by itself."""
    for prompt in ("the cat", "a", "hat", "and the bat", "", "the"):
        if generate_text(directory, prompt, 400)["finish_reason"] == "length":
            return prompt
    raise AssertionError("every text ends: change the model's seed")


Process = subprocess.Popen[str]


@contextmanager
def served(directory: Path, *options: str, **variables: str) -> Iterator[tuple[Client, Process]]:
    """A server of its own, stopped at the end whatever happens."""
    command = [*SERVE, str(directory), "--port", "0", "--name", "m", *options]
    process = subprocess.Popen(command, env=ENVIRONMENT | variables, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"serving m at (http://\S+)/v1 ", line)
        assert found, f"the server did not start: {line!r}"
        yield Client(found[1]), process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def client(directory: Path) -> Iterator[Client]:
    """A server of three rows that the session's tests share."""
    with served(directory, "--max-batch-size", "3") as (found, _):
        yield found


@pytest.fixture(scope="session")
def greedy(directory: Path) -> Callable[..., str]:
    """What `flashslm generate` says."""

    def text(prompt: str, new_tokens: int, **settings: Any) -> str:
        return str(generate_text(directory, prompt, new_tokens, **settings)["text"])

    return text

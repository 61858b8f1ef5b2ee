"""The shipped pipelines on the local runner, with stand-ins for the steps (see fake_steps/sitecustomize.py)."""

import functools
import io
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from flashslm.config import RunConfig
from flashslm.launch.compiling import arguments_for, compile_pipeline, pipeline_arguments
from flashslm.launch.local.launcher import LocalResult, run_job
from flashslm.launch.local.runner import Job
from tests.pipeline.fake_kfp import FakeKfp
from tests.waiting import whole_lines

FAKE_STEPS = Path(__file__).parent / "fake_steps"


@functools.cache
def compiled_text(pipeline: str, retries: int, retry_wait_s: int) -> str:
    """A shipped pipeline with another wait before its first retry."""
    with tempfile.TemporaryDirectory() as directory:
        file = compile_pipeline(pipeline, Path(directory) / "pipeline.yaml", retries=retries)
        return file.read_text().replace("backoffDuration: 5s", f"backoffDuration: {retry_wait_s}s")


@dataclass
class FakeRuns:
    """Runs of a pipeline in one home; `calls` are the steps that really ran, in all of them."""

    directory: Path
    pipeline: str = "design_and_train"
    retries: int = 0
    retry_wait_s: int = 0
    digest: str = "code"
    count: int = 0
    printed: str = ""
    config: RunConfig = field(
        default_factory=lambda: RunConfig.model_validate({"name": "toy", "data": {"paths": ["/usr/lib/python3/*.py"]}})
    )

    @property
    def calls_file(self) -> Path:
        return self.directory / "calls.jsonl"

    def calls(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in whole_lines(self.calls_file)]

    def ran(self) -> list[str]:
        return [call["step"] for call in self.calls() if "inputs" in call]

    def env(self, **script: Any) -> dict[str, str]:
        python_path = os.pathsep.join([str(FAKE_STEPS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)
        script_json = json.dumps(script)
        return {
            "TMPDIR": str(self.directory),
            "PYTHONPATH": python_path,
            "FAKE_STEPS": script_json,
            "FAKE_CALLS": str(self.calls_file),
        }

    def job(self) -> Job:
        self.count += 1
        run_dir = self.directory / f"run-{self.count}"
        run_dir.mkdir()
        compiled = run_dir / "pipeline.yaml"
        compiled.write_text(compiled_text(self.pipeline, self.retries, self.retry_wait_s))
        spec = next(yaml.safe_load_all(compiled.read_text()))
        arguments = arguments_for(spec, pipeline_arguments(self.config, self.digest, "source"))
        at_once = self.config.platform.variants_at_once
        return Job(compiled, arguments, run_dir, self.directory / "home", at_once)

    def run(self, **script: Any) -> LocalResult:
        screen = io.StringIO()
        result = run_job(self.job(), self.env(**script), Console(file=screen, width=200))
        self.printed = screen.getvalue()
        return result

    def start(self, own_group: bool = False, **script: Any) -> subprocess.Popen[str]:
        """The launcher as a process of its own, to send signals to."""
        job = self.job()
        job.write(job.run_dir / "test-job.json")
        code = (
            "import sys; from pathlib import Path; from rich.console import Console\n"
            "from flashslm.launch.local.launcher import run_job; from flashslm.launch.local.runner import Job\n"
            "sys.exit(run_job(Job.read(Path(sys.argv[1])), {}, Console()).exit_code)"
        )
        command = [sys.executable, "-c", code, str(job.run_dir / "test-job.json")]
        env = os.environ | self.env(**script)
        return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True, start_new_session=own_group)


@pytest.fixture
def fake_runs(tmp_path: Path) -> Callable[..., FakeRuns]:
    return lambda **options: FakeRuns(tmp_path, **options)


@pytest.fixture
def fake() -> Iterator[FakeKfp]:
    with FakeKfp() as server:
        yield server

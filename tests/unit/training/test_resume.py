"""A run that is stopped and resumed is the run that never stopped: same bits in weights, same curve."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from flashslm.training.spec import TrainOutcome
from flashslm.training.trainer import train
from tests.unit.training import tiny

ROOT = Path(__file__).parents[3]
MEASURED = ("tokens_per_s", "step_time_ms")
Rows = list[dict[str, float]]


class Reference:
    """The unstopped run's weights and curve."""

    def __init__(self, dataset: Path):
        self.dataset = dataset
        self.weights, self.result = run(dataset)

    def check(self, weights: dict[str, torch.Tensor], history: Rows) -> None:
        assert weights.keys() == self.weights.keys()
        assert all(torch.equal(weights[name], tensor) for name, tensor in self.weights.items())
        assert curve(history) == curve(self.result.history)


def run(
    dataset: Path,
    store: Path | None = None,
    on_metrics: Callable[[int, dict[str, float]], None] | None = None,
    on_resume: Callable[[int, str], None] | None = None,
) -> tuple[dict[str, torch.Tensor], TrainOutcome]:
    model, directory = tiny.model(), tiny.DirectoryStore(store) if store else None
    outcome = train(tiny.spec(weight_norm=True), model, tiny.fetching(dataset), directory, on_metrics, on_resume)
    return model.state_dict(), outcome


def curve(history: Rows) -> Rows:
    return [{key: value for key, value in row.items() if key not in MEASURED} for row in history]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    return Reference(tiny.write_dataset(tmp_path_factory.mktemp("dataset")))


def test_checkpointing_itself_changes_nothing(reference: Reference, tmp_path: Path) -> None:
    weights, result = run(reference.dataset, tmp_path)
    reference.check(weights, result.history)
    assert result.resumed_from_step == 0


def test_resume_after_an_exception(reference: Reference, tmp_path: Path) -> None:
    def fail(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(reference.dataset, tmp_path, fail)
    rows: Rows = []
    resumed: list[tuple[int, str]] = []
    weights, result = run(
        reference.dataset,
        tmp_path,
        lambda step, metrics: rows.append({"step": step} | metrics),
        lambda step, checkpoint: resumed.append((step, checkpoint)),
    )
    assert result.resumed_from_step == 3
    reference.check(weights, result.history)
    assert rows == [row for row in result.history if row["step"] > 3]  # the second attempt's metrics begin there
    assert [step for step, _ in resumed] == [3] and resumed[0][1].endswith("/00000003.json")


def test_a_run_that_begins_does_not_say_that_it_resumes(reference: Reference, tmp_path: Path) -> None:
    run(reference.dataset, tmp_path, on_resume=lambda step, checkpoint: pytest.fail(f"{step} {checkpoint}"))


def test_resume_after_sigkill(reference: Reference, tmp_path: Path) -> None:
    arguments = {"dataset": str(reference.dataset), "store": str(tmp_path), "output": "", "changes": {}}
    call = json.dumps([arguments | {"signals": {7: "SIGKILL"}}])
    command = [sys.executable, "-m", "tests.unit.training.worker", call]
    assert subprocess.run(command, cwd=ROOT, timeout=300).returncode == -signal.SIGKILL
    weights, result = run(reference.dataset, tmp_path)
    assert result.resumed_from_step == 6
    reference.check(weights, result.history)


def test_sigterm_finishes_the_step_saves_and_exits_143(reference: Reference, tmp_path: Path) -> None:
    def terminate(step: int, metrics: dict[str, float]) -> None:
        if step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(SystemExit) as stopped:
        run(reference.dataset, tmp_path, terminate)
    assert stopped.value.code == 143
    weights, result = run(reference.dataset, tmp_path)
    assert result.resumed_from_step == 4
    reference.check(weights, result.history)


def test_sigterm_in_the_first_step_waits_for_nothing(reference: Reference, tmp_path: Path) -> None:
    """There is nothing to save: the signal does what it does outside of training."""

    def end(*_: object) -> None:
        raise TimeoutError("ended")

    def terminate(step: int, metrics: dict[str, float]) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(TimeoutError):
            run(reference.dataset, tmp_path, terminate)
    finally:
        signal.signal(signal.SIGTERM, before)
    _, result = run(reference.dataset, tmp_path)
    assert result.resumed_from_step == 0


def test_a_finished_run_is_not_trained_again(reference: Reference, tmp_path: Path) -> None:
    _, first = run(reference.dataset, tmp_path)
    weights, second = run(reference.dataset, tmp_path)
    assert second.resumed_from_step == second.steps
    reference.check(weights, second.history)
    assert second.train_time_s == pytest.approx(first.train_time_s, abs=0.05)


def test_a_corrupt_newest_checkpoint_costs_only_its_steps(reference: Reference, tmp_path: Path) -> None:
    run(reference.dataset, tmp_path)
    store = tiny.DirectoryStore(tmp_path)
    pointer, _ = store.get_json("checkpoints/run/00000008.json")
    (file,) = (tmp_path / "cas" / pointer["trees"][0]["sha256"]).glob("*.safetensors")
    file.write_bytes(b"")
    with pytest.warns(UserWarning, match="00000008"):
        weights, result = run(reference.dataset, tmp_path)
    assert result.resumed_from_step == 6
    reference.check(weights, result.history)

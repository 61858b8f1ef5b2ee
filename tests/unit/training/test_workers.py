"""What a worker's output says to the step that reads it."""

import pytest

from flashslm.training.workers import WorkerOutput, print_failure, print_metrics


class Read:
    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.log: list[str] = []
        self.output = WorkerOutput(lambda step, values: self.rows.append((step, values)), self.log.append)

    def lines(self, text: str) -> None:
        for line in text.splitlines():
            self.output.line(line)


def test_metrics_come_through_once_each(capfd: pytest.CaptureFixture[str]) -> None:
    read = Read()
    for step in (1, 2, 2, 1, 3):  # a worker that resumed tells the restored rows again
        print_metrics(step, {"loss_nats": step / 2})
    read.lines(capfd.readouterr().out)
    read.output.row({"step": 3.0, "loss_nats": 9.0})
    read.output.row({"step": 4.0, "loss_nats": 2.0})
    assert read.rows == [(step, {"loss_nats": step / 2}) for step in (1, 2, 3, 4)]
    assert read.log == []


def test_log_lines_are_passed_on_and_half_a_row_is_one() -> None:
    read = Read()
    read.lines('a warning\n@metrics {"step": 1, "loss')
    assert read.log == ["a warning", '@metrics {"step": 1, "loss'] and read.rows == []


def test_the_first_failure_is_kept_in_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    read = Read()
    with pytest.raises(ValueError), print_failure():
        raise ValueError("two\n  lines")
    with pytest.raises(SystemExit), print_failure():
        raise SystemExit(143)  # a worker that was asked to stop has not failed
    read.lines(capfd.readouterr().out)
    read.lines("@failure RuntimeError: connection closed by peer")
    assert read.output.failure == "ValueError: two lines"

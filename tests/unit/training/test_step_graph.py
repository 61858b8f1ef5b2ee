"""Steps on fixed buffers, as a graph replays them, against plain ones; a stand-in records and replays on the CPU."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from flashslm.data.loader import Batch
from flashslm.hardware import PEAKS
from flashslm.models.hybrid import HybridLM
from flashslm.models.presets import preset
from flashslm.ops import kernels
from flashslm.training import step_graph
from flashslm.training.optimizer import keep_rate_on_device
from flashslm.training.spec import TrainOutcome
from flashslm.training.step import StepResult, TrainStep
from flashslm.training.step_graph import WARM_UP_STEPS, StepGraph, graphed, is_launch_bound, not_recordable
from flashslm.training.trainer import train
from tests.unit.training import tiny

H200 = PEAKS["NVIDIA H200"].flops_per_s


class Capture:
    """What is recorded runs at each replay alone and fills the same tensors."""

    def __init__(self) -> None:
        self.warm_ups = self.recordings = self.replays = 0

    def warm_up(self, work: Any) -> Any:
        self.warm_ups += 1
        return work()

    def record(self, work: Any) -> tuple[Callable[[], None], Any]:
        self.recordings += 1
        filled = StepResult(torch.zeros(()), torch.zeros(()))

        def replay() -> None:
            self.replays += 1
            for target, source in zip(filled, work(), strict=True):
                target.copy_(source)

        return replay, filled


class FailingCapture(Capture):
    """Recording ends in the middle of the backward pass, with gradients that were never computed."""

    def __init__(self, model: HybridLM) -> None:
        super().__init__()
        self.model = model

    def record(self, work: Any) -> tuple[Callable[[], None], Any]:
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, torch.nan)
        try:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nSearch for the code")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("dataset"))


@pytest.fixture
def capture(monkeypatch: pytest.MonkeyPatch) -> Capture:
    """Every training with cuda_graph takes its steps through this one."""
    found = Capture()
    monkeypatch.setattr(step_graph, "not_recordable", lambda step: "")
    monkeypatch.setattr(step_graph, "CudaCapture", lambda device: found)
    return found


def fit(dataset: Path, store: Path | None = None, model: HybridLM | None = None, **changes: object) -> TrainOutcome:
    directory = tiny.DirectoryStore(store) if store else None
    spec = tiny.spec(tiny.config(**changes), weight_norm=True)
    return train(spec, model or tiny.model(), tiny.fetching(dataset), directory)


def assert_same_curve(graph: TrainOutcome, plain: TrainOutcome) -> None:
    """To the rounding of the learning rate, which a graph reads in fp32.

    The gradient's norm shows it most: by 2.6e-4 at most in 12 such pairs under three instruction sets, losses by 2e-6.
    """
    for row, expected in zip(graph.curve(), plain.curve(), strict=True):
        assert row.pop("gradient_norm", 0.0) == pytest.approx(expected.pop("gradient_norm", 0.0), rel=2e-3, nan_ok=True)
        assert row == pytest.approx(expected, rel=1e-5, nan_ok=True)


def step_of(model: HybridLM, **changes: object) -> TrainStep:
    return TrainStep(model, tiny.config(**changes), "float32", weight_norm=False)


def random_batch(rows: int = 2, length: int = 16) -> Batch:
    tokens = torch.randint(tiny.VOCAB, (rows, length))
    return Batch(tokens, tokens.roll(-1, 1), torch.zeros_like(tokens))


def test_a_run_of_recorded_steps_is_the_plain_run(dataset: Path, capture: Capture) -> None:
    """With micro-batches, validations, weight normalisation and the schedule's rates."""
    changes = {"steps": 20, "micro_batch_size": 2}
    graph = fit(dataset, cuda_graph="on", **changes)
    assert (capture.warm_ups, capture.recordings, capture.replays) == (WARM_UP_STEPS, 1, 20 - WARM_UP_STEPS)
    plain = fit(dataset, **changes)
    assert_same_curve(graph, plain)
    assert graph.kernels["training step"] == "CUDA graph" and "training step" not in plain.kernels
    assert len({row["learning_rate"] for row in graph.history}) > 10


def test_each_shape_of_a_staged_run_is_recorded(dataset: Path, capture: Capture) -> None:
    stages = [{"from_step": 6, "sequence_length": 24}, {"from_step": 12, "batch_size": 6, "micro_batch_size": 3}]
    graph = fit(dataset, cuda_graph="on", steps=18, stages=stages)
    assert (capture.recordings, capture.warm_ups) == (3, 3 * WARM_UP_STEPS)
    assert_same_curve(graph, fit(dataset, steps=18, stages=stages))


def test_a_recorded_step_is_skipped_where_its_gradient_is_not_finite(dataset: Path, capture: Capture) -> None:
    def ruined(number: int) -> HybridLM:
        model, seen = tiny.model(), []

        def ruin(gradient: torch.Tensor) -> torch.Tensor:
            seen.append(1)
            return gradient * torch.nan if len(seen) == number else gradient

        model.embedding.weight.register_hook(ruin)
        return model

    graph = fit(dataset, model=ruined(7), steps=12, cuda_graph="on")
    assert capture.replays == 9 and graph.skipped_steps == 1
    assert_same_curve(graph, fit(dataset, model=ruined(7), steps=12))


def test_a_run_resumes_in_the_middle_of_recorded_steps(dataset: Path, capture: Capture, tmp_path: Path) -> None:
    """Of 6 steps, then on to 12: what the checkpoint holds is what the graph updates."""
    whole = fit(dataset, cuda_graph="on", steps=12, schedule="warmup_stable_decay", decay_steps=2)
    sizes = {"schedule": "warmup_stable_decay", "decay_steps": 2, "checkpoint_every_steps": 7}

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 9:
            raise KeyboardInterrupt

    spec = tiny.spec(tiny.config(cuda_graph="on", steps=12, **sizes), weight_norm=True)
    store = tiny.DirectoryStore(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        train(spec, tiny.model(), tiny.fetching(dataset), store, stop)
    resumed = train(spec, tiny.model(), tiny.fetching(dataset), store)
    assert resumed.resumed_from_step == 7 and resumed.curve() == whole.curve()


def test_a_step_reads_its_own_copy_of_the_batch() -> None:
    """The caller's tensors may be used for something else while the step has still to run."""
    graph, twin = StepGraph(step_of(tiny.model()), Capture()), step_of(tiny.model())
    for number in range(WARM_UP_STEPS + 2):
        batch = random_batch()
        expected = twin.run(number, [batch], 1)
        given = Batch(*(tensor.clone() for tensor in batch))
        result = graph.run(number, iter([given]), 1)
        for tensor in given:
            tensor.zero_()
        assert float(result.loss) == pytest.approx(float(expected.loss), rel=1e-5)
        assert float(result.gradient_norm) == pytest.approx(float(expected.gradient_norm), rel=1e-4)
    assert kernels.decisions()["training step"] == "CUDA graph"


def test_what_cannot_be_recorded_goes_on_plainly_and_says_why(caplog: pytest.LogCaptureFixture) -> None:
    model = tiny.model()
    graph, twin = StepGraph(step_of(model), FailingCapture(model)), step_of(tiny.model())
    keep_rate_on_device(twin.optimizer, twin.device)
    for number in range(WARM_UP_STEPS + 3):
        batch = random_batch()
        expected, result = twin.run(number, [batch], 1), graph.run(number, [batch], 1)
        assert float(result.loss) == float(expected.loss)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), twin.model.parameters(), strict=True))
    assert graph.problem == "RuntimeError: CUDA error: operation not permitted when stream is capturing"
    assert [r.message for r in caplog.records if r.levelname == "WARNING"] == [
        f"cuda_graph: steps run plainly: the step could not be recorded: {graph.problem}"
    ]
    assert kernels.decisions()["training step"] == "plain"


def test_a_rate_that_is_a_tensor_stays_the_same_one() -> None:
    """A graph has recorded its address."""
    step = step_of(tiny.model())
    keep_rate_on_device(step.optimizer, step.device)
    rates = [group["lr"] for group in step.optimizer.param_groups]
    keep_rate_on_device(step.optimizer, step.device)
    assert all(group["lr"] is rate for group, rate in zip(step.optimizer.param_groups, rates, strict=True))


@pytest.mark.parametrize(("wanted", "level"), [("on", "WARNING"), ("auto", "INFO")])
def test_a_cpu_takes_plain_steps(dataset: Path, caplog: pytest.LogCaptureFixture, wanted: str, level: str) -> None:
    with caplog.at_level("INFO", step_graph.__name__):
        found = fit(dataset, cuda_graph=wanted)
    assert found.curve() == fit(dataset).curve()
    lines = [(r.levelname, r.message) for r in caplog.records if r.name == step_graph.__name__]
    assert lines == [(level, "cuda_graph: steps run plainly: the model is on cpu")]


@pytest.mark.parametrize(
    ("operators", "changes", "why"),
    [("DFMFAF", {}, ""), ("DF", {"isolate_documents": True}, "isolate_documents"), ("DFWF", {}, "attention (W)")],
)
def test_steps_that_ask_the_device_are_not_recorded(operators: str, changes: dict[str, Any], why: str) -> None:
    model = SimpleNamespace(architecture=tiny.architecture(operators))
    step = SimpleNamespace(device=torch.device("cuda"), config=tiny.config(**changes), model=model)
    found = not_recordable(cast(TrainStep, step))
    assert bool(found) == bool(why) and why in found


def test_auto_records_models_that_the_host_cannot_keep_up_with() -> None:
    """On an H200: the proxies of a search, not a model of a billion parameters at 32k tokens a pass."""
    sizes = tiny.SIZES.model_copy(update={"head_dim": 64, "mamba_state": 64, "mamba_head_dim": 32})
    for width in (256, 768):
        proxy = tiny.build_architecture("DFMFAFMF" * 3, width, sizes, 16_384)
        assert is_launch_bound(proxy, 16, 1024, H200) and not is_launch_bound(proxy, 16 * 64, 1024, H200)
    assert not is_launch_bound(preset("nemotron-flash-1b"), 8, 4096, H200)


@pytest.mark.parametrize(
    ("name", "rows", "why"),
    [("NVIDIA H200", 4, None), ("NVIDIA H200", 1 << 26, "busy"), ("GeForce", 4, "how fast 'GeForce' is")],
)
def test_auto_asks_what_the_gpu_can_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capture: Capture, name: str, rows: int, why: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    step = step_of(tiny.model(), cuda_graph="auto", batch_size=4, stages=[{"from_step": 2, "batch_size": rows}])
    with caplog.at_level("INFO", step_graph.__name__):
        found = graphed(step)
    assert isinstance(found, StepGraph) == (why is None) and (why or "") in caplog.text

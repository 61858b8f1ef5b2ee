"""Recorded steps against plain ones: losses, weights, rates, a skipped step, a checkpoint, a recording that fails."""

from pathlib import Path

import pytest
import torch

from flashslm.config import ModelConfig
from flashslm.data.loader import Batch
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.ops.gradient_check import relative_error
from flashslm.training.optimizer import keep_rate_on_device
from flashslm.training.spec import FromArchitecture, TrainOutcome
from flashslm.training.step import TrainStep
from flashslm.training.step_graph import WARM_UP_STEPS, StepGraph
from flashslm.training.trainer import train
from tests.unit.training import tiny

pytestmark = pytest.mark.gpu
STEPS = 20
SIZES = ModelConfig(head_dim=64, kv_group=2, ffn_ratio=3, mamba_state=64, mamba_head_dim=64, num_meta_tokens=8)
ARCHITECTURE = build_architecture("DFMFAF", 256, SIZES, tiny.VOCAB)
SETTINGS = {"steps": STEPS, "sequence_length": 128, "learning_rate": 2e-3, "checkpoint_every_steps": 9}


class Injected:
    """A TrainStep whose gradients are multiplied by a factor, which lies on the device: a graph reads it too."""

    def __init__(self, weight_norm: bool, **changes: object) -> None:
        model = HybridLM.build(ARCHITECTURE, device="cuda")
        self.factor = torch.ones((), device="cuda")
        model.embedding.weight.register_hook(lambda gradient: gradient * self.factor)
        settings = tiny.config(**SETTINGS | changes)
        self.step = TrainStep(model, settings, "bfloat16", weight_norm=weight_norm)
        keep_rate_on_device(self.step.optimizer, self.step.device)

    def weights(self) -> torch.Tensor:
        return torch.cat([parameter.detach().flatten() for parameter in self.step.model.parameters()])

    def moments(self) -> torch.Tensor:
        return torch.cat([state["exp_avg_sq"].flatten() for state in self.step.optimizer.state.values()])


def batches(number: int, count: int, length: int = 128) -> list[Batch]:
    generator = torch.Generator().manual_seed(number)
    windows = torch.randint(tiny.VOCAB, (count, 4, length + 1), generator=generator).cuda()
    return [Batch(w[:, :-1].contiguous(), w[:, 1:].contiguous(), torch.zeros_like(w[:, 1:])) for w in windows]


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("weight_norm", [False, True], ids=["free", "unit-norm"])
def test_twenty_recorded_steps_are_twenty_plain_ones(weight_norm: bool, count: int) -> None:
    """Step 11 has a gradient that is not finite: it changes neither weights nor moments."""
    plain, other = Injected(weight_norm), Injected(weight_norm)
    graph = StepGraph(other.step)
    for number in range(STEPS):
        for form in (plain, other):
            form.factor.fill_(torch.inf if number == 11 else 1.0)
        before = other.weights()
        expected = plain.step.run(number, batches(number, count), count)
        found = graph.run(number, batches(number, count), count)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=2e-3)
        assert torch.isfinite(found.gradient_norm) == (number != 11)
        if number == 11:
            assert relative_error(other.weights(), before) < 1e-6
    assert not graph.problem
    assert relative_error(other.weights(), plain.weights()) < 1e-2
    assert relative_error(other.moments(), plain.moments()) < 5e-2
    assert {float(state["step"]) for state in other.step.optimizer.state.values()} == {STEPS - 1.0}


def test_another_shape_is_recorded_too_and_validation_comes_between() -> None:
    plain, other = Injected(True), Injected(True)
    graph, seen = StepGraph(other.step), batches(99, 1, 200)[0]
    for number in range(3 * WARM_UP_STEPS):
        length = 128 if number < 5 else 192
        given = batches(number, 1, length)
        expected, found = plain.step.run(number, given, 1), graph.run(number, given, 1)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=2e-3)
        with torch.no_grad():
            validated = [float(form.step.loss(seen)) for form in (plain, other)]
        assert validated[1] == pytest.approx(validated[0], rel=2e-3)
    assert not graph.problem


def test_a_recording_that_fails_leaves_plain_steps_and_the_allocator_whole() -> None:
    other, plain = Injected(False), Injected(False)

    def ask_the_device(gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float(gradient.abs().max() >= 0)

    other.step.model.final_norm.weight.register_hook(ask_the_device)
    graph = StepGraph(other.step)
    for number in range(WARM_UP_STEPS + 3):
        given = batches(number, 1)
        expected, found = plain.step.run(number, given, 1), graph.run(number, given, 1)
        assert float(found.loss) == pytest.approx(float(expected.loss), rel=2e-3)
    assert "captur" in graph.problem
    assert 0 <= float(torch.rand((), device="cuda")) < 1  # torch's generator has left the recording too
    torch.cuda.empty_cache()
    again = StepGraph(Injected(False).step)
    for number in range(WARM_UP_STEPS + 2):
        again.run(number, batches(number, 1), 1)
    assert not again.problem


def run(dataset: Path, cuda_graph: str, store: Path | None = None, stop_at: int = 0) -> tuple[TrainOutcome, HybridLM]:
    """The whole trainer; with `stop_at` it is interrupted after so many steps."""

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == stop_at:
            raise KeyboardInterrupt

    start = FromArchitecture(architecture=ARCHITECTURE)
    settings = tiny.config(**SETTINGS | {"cuda_graph": cuda_graph, "deterministic": "on"})
    directory = tiny.DirectoryStore(store) if store else None
    model = HybridLM.build(ARCHITECTURE, device="cuda")
    spec = tiny.spec(settings, start=start, weight_norm=True)
    return train(spec, model, tiny.fetching(dataset), directory, stop), model


def test_a_training_resumes_from_a_checkpoint_between_recorded_steps(tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path / "data")
    plain, _ = run(dataset, "off")
    whole, weights = run(dataset, "on")
    with pytest.raises(KeyboardInterrupt):
        run(dataset, "on", tmp_path / "store", stop_at=14)
    resumed, again = run(dataset, "on", tmp_path / "store")
    assert resumed.resumed_from_step == 9 and resumed.kernels["training step"] == "CUDA graph"
    for found in (whole, resumed):
        for row, expected in zip(found.curve(), plain.curve(), strict=True):
            assert row == pytest.approx(expected, rel=5e-3)
    pairs = zip(weights.parameters(), again.parameters(), strict=True)
    assert all(relative_error(a, b) < 1e-2 for a, b in pairs)


def test_what_a_graph_reserves_is_free_after_the_training(tmp_path: Path) -> None:
    dataset = tiny.write_dataset(tmp_path / "data")
    run(dataset, "on")
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved()
    for _ in range(3):
        run(dataset, "on")
    torch.cuda.empty_cache()
    assert torch.cuda.memory_reserved() <= 1.1 * before + 32 * 2**20

import math
import threading
from pathlib import Path

import pytest
import torch

from flashslm.data.loader import IGNORE_INDEX
from flashslm.models.hybrid import HybridLM
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.runtime import reproducible
from flashslm.training.spec import NonFiniteLoss, TrainOutcome
from flashslm.training.trainer import train
from flashslm.training.weight_norm import weight_norms
from tests.unit.training import tiny


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_dataset(tmp_path_factory.mktemp("dataset"))


def fit(dataset: Path, weight_norm: bool = False, **changes: object) -> tuple[HybridLM, TrainOutcome]:
    model, spec = tiny.model(), tiny.spec(tiny.config(**changes), weight_norm=weight_norm)
    return model, train(spec, model, tiny.fetching(dataset))


def test_the_loss_falls_from_the_unigram_level(dataset: Path) -> None:
    _, result = fit(dataset, steps=40, validate_every_steps=20, log_every_steps=20)
    assert result.history[0]["train/loss_nats"] > 3
    assert result.validation_loss_nats < 3.0


def test_two_runs_are_bit_identical(dataset: Path) -> None:
    (first, a), (second, b) = fit(dataset), fit(dataset)
    assert all(torch.equal(p, q) for p, q in zip(first.parameters(), second.parameters(), strict=True))
    assert [row["train/loss_nats"] for row in a.history] == [row["train/loss_nats"] for row in b.history]


def test_weight_normalised_runs_are_trained_at_a_rate_of_their_own(dataset: Path) -> None:
    _, scaled = fit(dataset, weight_norm=True, learning_rate=1e-3, weight_norm_rate_factor=4.0)
    _, direct = fit(dataset, weight_norm=True, learning_rate=4e-3)
    assert scaled.history[0]["learning_rate"] == direct.history[0]["learning_rate"]
    assert scaled.validation_loss_nats == direct.validation_loss_nats


def test_micro_batches_give_the_whole_batch_s_steps(dataset: Path) -> None:
    _, whole = fit(dataset, learning_rate=1e-3)
    _, accumulated = fit(dataset, learning_rate=1e-3, micro_batch_size=1)
    for a, b in zip(whole.history, accumulated.history, strict=True):
        assert b["train/loss_nats"] == pytest.approx(a["train/loss_nats"], abs=1e-5)
        assert b["gradient_norm"] == pytest.approx(a["gradient_norm"], rel=1e-4)


def test_validation_is_the_mean_over_every_target(dataset: Path) -> None:
    """Also in the split's last batch, where some places have no target."""
    settings = tiny.config(steps=1, batch_size=7, validation_tokens=10**9)
    model, (_, validation) = tiny.model(), tiny.loaders(dataset, settings)
    result = train(tiny.spec(settings), model, tiny.fetching(dataset))
    losses = []
    for batch in validation.sequential():
        log_p = model.logits(model(batch.tokens_BT)).double().log_softmax(-1)
        kept = batch.targets_BT != IGNORE_INDEX
        losses.append(-log_p[kept].gather(1, batch.targets_BT[kept][:, None]).detach())
    assert len(torch.cat(losses)) == validation.num_tokens - 1
    assert result.validation_loss_nats == pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)


def test_rows_come_at_log_and_validation_steps_and_at_the_end(dataset: Path) -> None:
    rows: list[tuple[int, dict[str, float]]] = []
    settings = tiny.config(steps=8, log_every_steps=3, validate_every_steps=5)
    spec = tiny.spec(settings, weight_norm=True)
    result = train(
        spec, tiny.model(), tiny.fetching(dataset), on_metrics=lambda step, values: rows.append((step, values))
    )
    assert [step for step, _ in rows] == [3, 5, 6, 8]
    assert [step for step, row in rows if "validation/loss_nats" in row] == [5, 8]
    assert result.history == [{"step": step} | row for step, row in rows]
    assert all(row["step_time_ms"] > 0 and row["weight_norm"] == pytest.approx(1) for _, row in rows)
    assert rows[0][1]["tokens_per_s"] == pytest.approx(4 * 16 / (rows[0][1]["step_time_ms"] / 1000))
    assert "mfu" not in rows[0][1]  # no peak is known for a CPU
    assert result.tokens_seen == 8 * 4 * 16 and result.results()["steps"] == 8


def test_weight_norm_holds_after_every_step_and_only_when_asked(dataset: Path) -> None:
    on, _ = fit(dataset, weight_norm=True)
    off, result = fit(dataset)
    assert torch.cat(list(weight_norms(on).values())).sub(1).abs().max() < 1e-6
    assert result.history[-1]["weight_norm"] == pytest.approx(
        torch.cat(list(weight_norms(off).values())).mean().item(), abs=1e-7
    )


@pytest.mark.parametrize(("asked", "used"), [("auto", "float32"), ("bfloat16", "bfloat16")])
def test_precision_is_decided_and_recorded(dataset: Path, asked: str, used: str) -> None:
    model, result = fit(dataset, steps=1, precision=asked)
    assert result.precision == used and result.device == "cpu"
    assert model.embedding.weight.dtype == torch.float32
    reference = fit(dataset, steps=1)[1].train_loss_nats
    assert (result.train_loss_nats == reference) == (used == "float32")
    assert result.train_loss_nats == pytest.approx(reference, rel=0.02)


def test_documents_are_isolated_when_asked(dataset: Path) -> None:
    losses = [fit(dataset, steps=1, isolate_documents=isolated)[1].train_loss_nats for isolated in (False, True)]
    assert losses[0] != losses[1]


def optimizer_steps(model: HybridLM, steps: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Where the step count of each parameter goes to."""
    steps.update({f"optimizer/{name}/step": torch.zeros(()) for name, _ in model.named_parameters()})
    return steps


def test_a_step_whose_gradient_is_not_finite_changes_nothing(dataset: Path, tmp_path: Path) -> None:
    """The gradient of step 5 is ruined. Step 6 then starts from the weights, moments and step counts of step 4."""
    model, seen = tiny.model(), []

    def ruin(gradient: torch.Tensor) -> torch.Tensor:
        seen.append(model.embedding.weight.detach().clone())
        return gradient * torch.nan if len(seen) == 5 else gradient

    model.embedding.weight.register_hook(ruin)
    store = tiny.DirectoryStore(tmp_path)
    outcome = train(tiny.spec(tiny.config(checkpoint_every_steps=6)), model, tiny.fetching(dataset), store)
    assert torch.equal(seen[4], seen[5]) and not torch.equal(seen[5], seen[6])
    assert [row["skipped_steps"] for row in outcome.history] == [0, 0, 0, 0, 1, 1, 1, 1] and outcome.skipped_steps == 1
    assert math.isnan(outcome.history[4]["gradient_norm"]) and math.isfinite(outcome.validation_loss_nats)
    saved, steps = store.get_json("checkpoints/run/00000008.json")[0], {}
    CheckpointStore(store, "run", keep=2).load_latest(lambda: optimizer_steps(model, steps))
    assert saved["values"]["skipped_steps"] == 1 and {float(step) for step in steps.values()} == {7.0}
    resumed = train(tiny.spec(tiny.config()), tiny.model(), tiny.fetching(dataset), store)
    assert resumed.resumed_from_step == 8 and resumed.skipped_steps == 1


def test_too_many_skipped_steps_end_the_run(dataset: Path, tmp_path: Path) -> None:
    """Weights are poisoned after step 4; the next look is at step 6, where a checkpoint is due."""
    settings = tiny.config(log_every_steps=4, validate_every_steps=100, max_skipped_steps=1)
    model = tiny.model()

    def poison(step: int, metrics: dict[str, float]) -> None:
        model.embedding.weight.data.fill_(torch.nan)

    store = tiny.DirectoryStore(tmp_path)
    with pytest.raises(
        NonFiniteLoss,
        match=r"in 2 steps \(max_skipped_steps is 1\).* step 6; the last good checkpoint is step 3\..*learning_rate",
    ):
        train(tiny.spec(settings), model, tiny.fetching(dataset), store, poison)
    assert CheckpointStore(store, "run", keep=2).load_latest(dict)[0].step == 3


def test_an_update_that_ruins_the_model_is_seen_in_the_step_that_made_it(dataset: Path) -> None:
    with pytest.raises(NonFiniteLoss, match="not finite at step 1; no checkpoint yet"):
        fit(dataset, steps=1, learning_rate=1e30, warmup_steps=0, gradient_clip=1e30)


def test_process_settings_are_put_back(dataset: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with reproducible(seed=1, threads=3):
        assert torch.get_num_threads() == 3 and torch.are_deterministic_algorithms_enabled()
        torch.rand(10)
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert torch.equal(torch.rand(3), expected)


def test_training_works_outside_the_main_thread(dataset: Path) -> None:
    losses: list[float] = []
    thread = threading.Thread(target=lambda: losses.append(fit(dataset, steps=2)[1].train_loss_nats))
    thread.start()
    thread.join()
    assert losses == [fit(dataset, steps=2)[1].train_loss_nats]

"""The search's short trainings for real, on a tiny data set: results, pruning, memory that a neighbour took."""

import gc
import weakref
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import pytest
import torch

from flashslm.config import RunConfig, SizeChoice, from_step_json
from flashslm.models.hybrid import HybridLM
from flashslm.search.finalists import Finalists, judge_finalists
from flashslm.search.halving import CandidatePruned
from flashslm.search.result import pruned_by_step, pruning_in_words, trained_share
from flashslm.search.study import SearchStudy
from flashslm.search.trial import Candidate, FinishedTrial, TrialFailed
from flashslm.search.worker import run_worker
from flashslm.steps import candidates as module
from flashslm.steps.candidates import FinalistTrainer, TrialTrainer
from flashslm.steps.context import StepContext
from flashslm.training.shared_gpu import SharedGpu
from flashslm.training.trainer import train
from tests.unit.steps.test_search_architecture import make_context
from tests.unit.training import tiny

SEARCH = {"steps": 8, "batch_size": 2, "sequence_length": 16, "learning_rate": 1e-2, "validation_tokens": 64}


class Runs:
    """The nested MLflow runs of a step: their names, tags and rows."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.tags: dict[str, str] = {}
        self.rows: list[tuple[int, dict[str, float]]] = []
        self.params: dict[str, Any] = {}

    @contextmanager
    def nested(self, name: str, params: dict[str, Any]):
        self.names.append(name)
        self.params = dict(params)
        yield self

    def set_tags(self, tags: dict[str, str]) -> None:
        self.tags |= tags

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.rows.append((step, values))

    def log_row(self, step: int, values: dict[str, float]) -> None:
        self.log_metrics(values, step)


@pytest.fixture
def runs() -> Runs:
    return Runs()


@pytest.fixture
def make_search(tmp_path: Path, runs: Runs, monkeypatch: pytest.MonkeyPatch):
    """A context of the step over a tiny data set, and a new study."""
    dataset = tiny.write_dataset(tmp_path / "data")
    monkeypatch.setattr(module, "end_lost", lambda *_: None)
    monkeypatch.setattr(SharedGpu, "of", lambda device: SharedGpu(tmp_path / "locks"))

    def make(model: Mapping[str, Any] = MappingProxyType({}), **search: Any) -> tuple[StepContext, SearchStudy]:
        sections = {"search": SEARCH | search, "profiling": {"device": "cpu"}, "model": dict(model)}
        recipe = RunConfig.model_validate({"name": "x"} | sections)
        step, anything = "search_architecture", cast(Any, runs)
        context = replace(make_context(), config=from_step_json(step, recipe.for_step(step)), mlflow_run=anything)
        monkeypatch.setattr(context, "stream", tiny.fetching(dataset))
        return context, SearchStudy.open(f"sqlite:///{tmp_path}/study.db", "search")

    return make


@pytest.fixture
def make_trainer(make_search):
    def make(earlier: Sequence[FinishedTrial] = (), **search: Any) -> TrialTrainer:
        proposer: Any = type("Known", (), {"known": lambda self, slot, history: earlier})()
        return TrialTrainer(*make_search(**search), proposer)

    return make


def candidate(slot: int = 3) -> Candidate:
    return Candidate(slot, 0, "(DF)x2", tiny.architecture("DFDF"), 1.0, None, "seed")


def finished(losses_by_step: tuple[tuple[int, float], ...]) -> FinishedTrial:
    return FinishedTrial(loss_nats=1.0, losses_by_step=losses_by_step, **candidate(0).attributes())


def test_a_candidate_is_trained_and_logged(make_trainer, runs: Runs) -> None:
    outcome = make_trainer()(candidate())
    assert outcome.steps == 8 and outcome.validation_loss_nats < 4.5
    assert runs.names == ["trial 3 · DFDF w16"] and runs.tags == {}
    assert runs.rows[-1] == (8, {"proxy_loss_nats": outcome.validation_loss_nats, "latency_ms": 1.0})
    assert make_trainer()(candidate()).validation_loss_nats == outcome.validation_loss_nats


def test_a_candidate_begins_with_the_outputs_that_the_recipe_says(make_trainer, tmp_path: Path) -> None:
    trainer, model = (
        make_trainer(model={"output_init": "zero"}),
        HybridLM.build(candidate().architecture, output_init="zero"),
    )
    alone = train(tiny.spec(trainer.training), model, tiny.fetching(tmp_path / "data"))
    assert trainer(candidate()).validation_loss_nats == alone.validation_loss_nats
    assert make_trainer()(candidate()).validation_loss_nats != alone.validation_loss_nats


def test_sizes_are_in_the_name_and_parameters_of_its_run_and_in_the_model(make_trainer, runs: Runs) -> None:
    wide = tiny.architecture("DFDF").model_copy(update={"ffn_size": 256})
    sized = Candidate(3, 0, "(DF)x2", wide, 1.0, None, "seed", SizeChoice(ffn_ratio=16.0))
    other, own = make_trainer()(sized), make_trainer()(candidate())
    assert runs.names == ["trial 3 · DFDF w16, ffn_ratio 16", "trial 3 · DFDF w16"]
    assert "ffn_ratio" not in runs.params and "sizes" not in runs.params
    assert other.validation_loss_nats != own.validation_loss_nats
    make_trainer()(sized)
    assert runs.params["ffn_ratio"] == 16.0 and "sizes" not in runs.params
    assert runs.params["parameters"] - candidate().attributes()["parameters"] == 2 * 3 * 16 * (256 - 128)


def test_one_that_loses_at_a_budget_is_pruned_there(make_trainer, runs: Runs) -> None:
    better = [finished(((2, 0.1),)), finished(((2, 0.2),))]
    with pytest.raises(CandidatePruned) as pruned:
        make_trainer(better, halving_from_steps=2, halving_factor=2)(candidate())
    assert set(pruned.value.losses_nats) == {2} and runs.tags == {"pruned_at_step": "2"}
    assert max(step for step, _ in runs.rows) == 2


def test_a_pruned_one_leaves_no_model_behind(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its memory goes back to the GPU as soon as it ends, not with the next collection of garbage."""
    build, models = module.HybridLM.build, list["weakref.ref[Any]"]()

    def watched(*given: Any, **named: Any) -> Any:
        model = build(*given, **named)
        models.append(weakref.ref(model))
        return model

    monkeypatch.setattr(module.HybridLM, "build", watched)
    trainer = make_trainer([finished(((2, 0.1),))], halving_from_steps=2, halving_factor=2)
    gc.disable()
    try:
        with pytest.raises(CandidatePruned):
            trainer(candidate())
        assert [model() for model in models] == [None]
    finally:
        gc.enable()


def test_one_that_leads_is_trained_to_the_end_with_its_losses(make_trainer) -> None:
    worse = [finished(((2, 9.0), (4, 9.0)))]
    outcome = make_trainer(worse, halving_from_steps=2, halving_factor=2)(candidate())
    assert set(outcome.validation_losses_nats()) == {2, 4, 8}


RECALL = {"recall_steps": 2, "recall_length": 16}


def test_recall_is_measured_before_training_where_the_recipe_asks_for_it(make_trainer, runs: Runs) -> None:
    trainer = make_trainer(**RECALL)
    first, again = trainer(candidate()), trainer(candidate())
    step, values = runs.rows[0]
    assert step == 0 and values["recall_accuracy"] == (values["noisy_recall"] + values["selective_copying"]) / 2
    assert first.recall_accuracy == again.recall_accuracy == values["recall_accuracy"]
    assert first.validation_loss_nats == make_trainer()(candidate()).validation_loss_nats, "the same training follows"


def test_one_whose_recall_is_too_low_is_not_trained(make_search, runs: Runs) -> None:
    context, study = make_search(**RECALL, recall_min_accuracy=1.0)
    waiting: Any = type("One", (), {"propose": lambda self, history: [candidate()], "known": lambda *_: []})()
    summary = run_worker(study, waiting, TrialTrainer(context, study, waiting))
    assert summary.pruned == 1 and runs.tags == {"pruned_at_step": "0"} and len(runs.rows) == 1
    (trial,) = study.finished()
    assert trial.pruned_at_step == 0 and not trial.succeeded and trial.losses_by_step == ()
    assert trial.recall_accuracy == runs.rows[0][1]["recall_accuracy"]
    history = [trial.record()]
    assert pruning_in_words(pruned_by_step(history)) == ["1 rejected by recall"] and trained_share(history, 8) == 0.0


def test_one_that_halving_ends_keeps_its_recall(make_search, runs: Runs) -> None:
    context, study = make_search(**RECALL, halving_from_steps=2, halving_factor=2)
    better = [finished(((2, 0.1),)), finished(((2, 0.2),))]
    waiting: Any = type("One", (), {"propose": lambda self, history: [candidate()], "known": lambda *_: better})()
    run_worker(study, waiting, TrialTrainer(context, study, waiting))
    (trial,) = study.finished()
    assert trial.pruned_at_step == 2 and trial.recall_accuracy == runs.rows[0][1]["recall_accuracy"]


def test_memory_that_lacks_beside_others_is_no_failure(
    make_trainer, runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, attempts = module.HybridLM.build, []

    def lacking(*given: Any, **named: Any) -> Any:
        attempts.append(1)
        if len(attempts) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return build(*given, **named)

    monkeypatch.setattr(module.HybridLM, "build", lacking)
    assert make_trainer()(candidate()).steps == 8
    assert runs.names == 2 * ["trial 3 · DFDF w16"]


def test_lack_of_memory_without_neighbours_is(make_trainer, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module.HybridLM, "build", lacking)
    with pytest.raises(TrialFailed, match="without neighbours too: CUDA out of memory"):
        make_trainer()(candidate())


def test_a_finalist_is_judged_on_the_threads_that_train_it(make_search, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers share a CPU's cores: each on all of them, they wait for one another."""
    threads, evaluate = list[int](), module.evaluate_perplexity

    def watched(*given: Any) -> Any:
        threads.append(torch.get_num_threads())
        return evaluate(*given)

    monkeypatch.setattr(module, "evaluate_perplexity", watched)
    context, study = make_search(finalists=1)
    trial = FinishedTrial(loss_nats=1.0, **candidate(0).attributes())
    finalists = Finalists(context.config.search, 0, [trial], budget_ms=1.0, build=lambda _: tiny.architecture("DFDF"))
    before = torch.get_num_threads()
    torch.set_num_threads(context.config.profiling.threads + 1)
    try:
        FinalistTrainer(context, study, finalists)(finalists.propose([])[0])
    finally:
        torch.set_num_threads(before)
    assert threads == [context.config.profiling.threads]


def test_finalists_are_trained_with_new_seeds_and_judged_on_the_test_split(make_search, runs: Runs) -> None:
    """Two workers' worth of work: every run is in the study, with both losses."""
    context, study = make_search(finalists=2, finalist_seeds=2, finalist_steps=12)
    trials = [
        FinishedTrial(
            loss_nats=float(slot), **replace(candidate(slot), architecture=tiny.architecture(operators)).attributes()
        )
        for slot, operators in enumerate(("DFDF", "MF", "AF"))
    ]
    search, seed = context.config.search, context.config.seed
    finalists = Finalists(search, seed, trials, budget_ms=1.0, build=lambda trial: tiny.architecture(trial.operators))
    summary = run_worker(study, finalists, FinalistTrainer(context, study, finalists))
    assert summary.trained == 4 and [name.partition(" ·")[0] for name in runs.names] == [
        f"finalist {slot}" for slot in range(4)
    ]
    done = study.finished()
    assert [(t.parent, t.operators) for t in done] == [(0, "DFDF"), (0, "DFDF"), (1, "MF"), (1, "MF")]
    assert len({t.loss_nats for t in done}) == 4, "another seed, another loss"
    assert all(t.test_loss_nats is not None and abs(t.test_loss_nats - t.loss_nats) < 1.0 for t in done)
    assert all(t.test_loss_nats != t.loss_nats for t in done)
    logged = [values for step, values in runs.rows if "test_loss_nats" in values]
    assert [values["test_loss_nats"] for values in logged] == [t.test_loss_nats for t in done]
    first, second = judge_finalists(done)
    assert first.validation_loss_nats < second.validation_loss_nats and second.difference_nats is not None

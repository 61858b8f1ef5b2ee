"""The scaling law's family in the real object store: trained side by side, kept, and not trained again."""

import dataclasses
import multiprocessing
import os
import signal
import threading

import pytest

from flashslm.config import RunConfig, from_step_json
from flashslm.infra.events import Events
from flashslm.infra.process.interrupts import Terminated, terminable
from flashslm.scaling.family import FamilyTraining, Member
from flashslm.steps.context import StepContext
from flashslm.steps.scaling_family import PREFIX, trained_family
from flashslm.training.side_by_side import WorkerKilled
from tests.unit.training import tiny
from tests.waiting import wait_until

pytestmark = pytest.mark.services

SCALING = {
    **{"block": "AF", "depths": [1, 2], "widths": [8], "holdout_depth": 2, "holdout_width": 16},
    **{"checkpoints": 2, "steps": 4, "batch_size": 4, "sequence_length": 16, "validation_tokens": 128},
}


class Tags:
    """The tags that a step's run in MLflow gets."""

    def __init__(self):
        self.tags = {}

    def set_tags(self, tags):
        self.tags |= tags


@pytest.fixture
def make_context(settings, store, tmp_path, request, monkeypatch):
    """`make_context(workers=2)`: a step's context with a data set in the store; changes are the scaling section's."""
    monkeypatch.setenv("FLASHSLM_CACHE", str(tmp_path / "trees"))
    dataset = store.put_tree(tiny.write_dataset(tmp_path / "data"), "dataset", {"vocab_size": tiny.VOCAB})

    def make(**changes):
        recipe = RunConfig.model_validate({"name": "x", "model": tiny.SIZES, "scaling": SCALING | changes})
        config = from_step_json("fit_scaling_law", recipe.for_step("fit_scaling_law"))
        events = Events("fit_scaling_law", "fit_scaling_law", tmp_path / "events.jsonl")
        parameters = {"code_digest": request.node.name}  # no test finds another one's models
        inputs = {"dataset": dataset}
        return StepContext("fit_scaling_law", config, settings, store, Tags(), events, inputs, parameters)

    return make


@pytest.fixture
def trainings(monkeypatch):
    """The models that this process trains."""
    trained, train = [], FamilyTraining.train

    def noted(training, member, open_dataset):
        trained.append(member)
        return train(training, member, open_dataset)

    monkeypatch.setattr(FamilyTraining, "train", noted)
    return trained


def test_a_retry_trains_only_what_is_missing(make_context, trainings, monkeypatch):
    killed_at, train = Member(2, 16), FamilyTraining.train

    def killed(training, member, open_dataset):
        if member == killed_at:
            raise Terminated(130)
        return train(training, member, open_dataset)

    kept = "^stopped after 2 of 3 models, which are kept$"
    with monkeypatch.context() as patch, pytest.raises(Terminated, match=kept):
        patch.setattr(FamilyTraining, "train", killed)
        trained_family(make_context())
    trainings.clear()
    context = make_context(bootstrap=20, choice_depths=[1, 2])  # they decide no model's numbers
    family = trained_family(context)
    assert trainings == [killed_at]
    assert [(p.depth, p.width) for p in family.points[::2]] == [(1, 8), (2, 8)]
    assert {(p.depth, p.width) for p in family.holdout} == {(2, 16)}
    assert context.mlflow_run.tags["kernel.cross_entropy/cpu/float32"] == "chunked"
    assert '"done": 3, "total": 3' in context.events.path.read_text()


def test_another_recipe_or_a_damaged_record_is_trained_again(make_context, store, trainings):
    trained_family(make_context())
    trained_family(make_context(learning_rate=2e-3))
    assert len(trainings) == 6
    damaged = max(store.list(PREFIX), key=lambda key: store.entries(PREFIX)[key].modified_s)
    store.put_json(damaged, {"points": []})
    trained_family(make_context(learning_rate=2e-3))
    assert len(trainings) == 7


def test_workers_side_by_side_give_the_same_numbers(make_context, trainings):
    alone = trained_family(make_context())
    context = dataclasses.replace(make_context(workers=3), parameters={"code_digest": "other code"})
    trainings.clear()
    together = trained_family(context)
    assert not trainings  # not in this process
    assert together == alone
    assert context.mlflow_run.tags["kernel.cross_entropy/cpu/float32"] == "chunked"


def end_workers(number):
    """Send a signal to every worker, once there are two."""
    wait_until(lambda: len(multiprocessing.active_children()) == 2)
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)


def test_a_killed_worker_is_an_error_that_says_what_to_do(make_context):
    thread = threading.Thread(target=end_workers, args=(signal.SIGKILL,))
    thread.start()
    with pytest.raises(WorkerKilled, match="one of 2 workers was killed, for lack of memory perhaps"):
        trained_family(make_context(workers=2, steps=1000))
    thread.join()


def test_a_step_that_is_to_end_ends_its_workers(make_context):
    def end_step():
        end_workers(0)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=end_step)
    thread.start()
    with pytest.raises(Terminated), terminable():
        trained_family(make_context(workers=2, steps=1_000_000))
    thread.join()
    assert not multiprocessing.active_children()

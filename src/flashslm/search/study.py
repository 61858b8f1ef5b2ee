"""Trials in an Optuna study: claims of numbered slots that any number of workers share, and that outlive a worker.

A claim is a RUNNING trial. Two workers may add one for the same slot; the lower trial number wins and the other gives
up. Claims of dead or silent workers are failed by whoever meets them, after which the slot is free again. Since a
slot's candidate and its training are functions of the seed, doing one twice wastes time but changes no result.
"""

import logging
import threading
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import optuna
from optuna.exceptions import ExperimentalWarning, UpdateFinishedTrialError
from optuna.trial import FrozenTrial, TrialState

from flashslm.infra.process import owners
from flashslm.search.database import DatabaseRefused, DatabaseUnavailable, RecordGone, StudyDatabase
from flashslm.search.halving import CandidatePruned
from flashslm.search.trial import CANDIDATE_FIELDS, Candidate, FinishedTrial
from flashslm.search.trial_parameters import DISTRIBUTIONS, OBJECTIVES, RECALL, trial_parameters
from flashslm.training.spec import TrainOutcome

HEARTBEAT_S = 20.0
HEARTBEAT_TTL_S = 300.0  # silence after which a claim on another host counts as abandoned; allows for clock skew
ATTEMPTS = 3  # a candidate that failed, or took its worker down with it, this often gets a loss of infinity
OF_OUTCOME = {"train_time_s", "test_loss_nats", "recall_accuracy", "recall_time_s"}  # those that a training has
ENDED = (TrialState.COMPLETE, TrialState.PRUNED)  # a slot with such a trial is finished
LOST, FAILED, YIELDED = "lost", "failed", "yielded"  # why a trial is FAIL; a yielded one says nothing of its candidate

_log = logging.getLogger(__name__)


class StudyGone(RuntimeError):
    """The study is not in its database any longer: all of its trials are lost."""


@dataclass(frozen=True)
class Claim:
    """A slot that this worker trains."""

    trial_id: int
    candidate: Candidate
    token: str  # the trial's own: a restored database gives its id to another one


class SearchStudy:
    """One search's trials. Objects are cheap: each worker opens its own."""

    def __init__(self, database: StudyDatabase, name: str, ttl_s: float) -> None:
        self.name, self._database, self._ttl_s = name, database, ttl_s
        self._storage = database.storage
        self.read_again()

    @classmethod
    def open(
        cls,
        url: str,
        name: str,
        *,
        with_recall: bool = False,
        patience_s: float = 60.0,
        ttl_s: float = HEARTBEAT_TTL_S,
    ) -> "SearchStudy":
        """Open the study `name`, making it (and the directory of an sqlite file) when it is not there yet.

        One that is made `with_recall` has a third objective, and keeps it however it is opened later.

        Every call waits up to `patience_s` for a database that is away.
        """
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        database = StudyDatabase(url, patience_s)
        storage = database.storage
        directions = ["minimize"] * len(OBJECTIVES) + ["maximize"] * with_recall
        options: dict[str, Any] = {"directions": directions, "load_if_exists": True}
        made = database.call(lambda: optuna.create_study(study_name=name, storage=storage, **options))
        if database.call(lambda: made.metric_names) is None:
            names = [*OBJECTIVES, RECALL][: len(made.directions)]  # it may have been made in another way before
            with warnings.catch_warnings(action="ignore", category=ExperimentalWarning):
                database.call(lambda: made.set_metric_names(names))
        return cls(database, name, ttl_s)

    def read_again(self) -> None:
        """Forget what was read: optuna keeps finished trials, which a restored database may not hold any longer.

        Raises StudyGone.
        """
        self._outages, self._has_lost_records = self._database.outages, False
        load = partial(optuna.load_study, study_name=self.name, storage=self._storage, sampler=_sampler())
        try:
            self._study = self._database.call(load)
        except RecordGone as error:
            raise self._gone() from error

    @property
    def may_have_changed(self) -> bool:
        """Whether the database was away, or lost a record, since it was last read whole."""
        return self._has_lost_records or self._outages != self._database.outages

    def finished(self) -> list[FinishedTrial]:
        """Finished trials by slot; of a slot trained twice, the first."""
        by_slot: dict[int, FinishedTrial] = {}
        for trial in self._trials(*ENDED):
            by_slot.setdefault(trial.user_attrs["slot"], _finished(trial))
        return [by_slot[slot] for slot in sorted(by_slot)]

    def train_time_s(self) -> float:
        """Training time of all finished trials."""
        return sum(float(trial.user_attrs.get("train_time_s", 0.0)) for trial in self._trials(*ENDED))

    def claim(self, candidates: Sequence[Candidate]) -> Claim | None:
        """Claim the first candidate that is neither finished nor being trained; None when there is none now."""
        self.take_over_abandoned()
        taken = {t.user_attrs["slot"] for t in self._trials(*ENDED, TrialState.RUNNING)}
        for candidate in candidates:
            if candidate.slot not in taken:
                claim = self._try_claim(candidate)
                if claim is not None:
                    return claim
        return None

    def complete(self, claim: Claim, outcome: TrainOutcome) -> bool:
        """Record a finished training; False when the claim had been taken over, or its record lost, meanwhile."""
        if not self._is_ours(claim):
            return False
        kept = outcome.model_dump(include=OF_OUTCOME)
        for key, value in kept.items():
            self._set_attribute(claim.trial_id, key, value)
        self._report(claim, outcome.validation_losses_nats())
        values = self._values(claim.candidate, outcome.validation_loss_nats, kept.get(RECALL, 0.0))
        return self._finish(claim.trial_id, TrialState.COMPLETE, values)

    def prune(self, claim: Claim, pruned: CandidatePruned) -> None:
        """Record a candidate that was trained no further, or not at all."""
        if self._is_ours(claim):
            for key, value in pruned.attributes.items():
                self._set_attribute(claim.trial_id, key, value)
            self._report(claim, pruned.losses_nats)
            values = self._values(claim.candidate, float("inf"), pruned.attributes.get(RECALL, 0.0))
            self._finish(claim.trial_id, TrialState.PRUNED, values)

    def fail(self, claim: Claim, reason: str) -> None:
        """Record a failed training; the last of its attempts ends the slot with a loss of infinity."""
        if not self._is_ours(claim):
            return
        if self.failed_attempts(claim.candidate.slot) + 1 >= ATTEMPTS:
            self._set_attribute(claim.trial_id, "reason", f"{FAILED}: {reason}")
            self._finish(claim.trial_id, TrialState.COMPLETE, self._values(claim.candidate, float("inf")))
        else:
            self._end_unfinished(claim.trial_id, f"{FAILED}: {reason}")

    def release(self, claim: Claim) -> None:
        """Give a slot back untrained, without counting an attempt."""
        if self._is_ours(claim):
            self._end_unfinished(claim.trial_id, YIELDED)

    def failed_attempts(self, slot: int) -> int:
        """How often this slot's candidate failed or its worker was lost."""
        reasons = [
            t.user_attrs.get("reason", "") for t in self._trials(TrialState.FAIL) if t.user_attrs["slot"] == slot
        ]
        return sum(reason.startswith((FAILED, LOST)) for reason in reasons)

    def lost_workers(self, slot: int) -> list[str]:
        """The owners of this slot's claims that were taken over: what they had logged of it counts no more."""
        failed = [t.user_attrs for t in self._trials(TrialState.FAIL) if t.user_attrs["slot"] == slot]
        return [attributes["worker"] for attributes in failed if attributes.get("reason") == LOST]

    @contextmanager
    def heartbeat(self, claim: Claim, every_s: float = HEARTBEAT_S) -> Iterator[None]:
        """Keep a claim alive from a thread while the body trains."""
        stop = threading.Event()

        def beat() -> None:
            while not stop.wait(every_s):
                try:
                    self._set_attribute(claim.trial_id, "heartbeat_s", time.time(), patience_s=0.0)
                except (DatabaseUnavailable, DatabaseRefused) as error:  # training goes on
                    _log.warning("no heartbeat for slot %d: %s", claim.candidate.slot, error)

        thread = threading.Thread(target=beat, daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def take_over_abandoned(self) -> int:
        """Fail the claims of workers that are gone; returns how many."""
        abandoned = [t for t in self._trials(TrialState.RUNNING) if self._is_abandoned(t)]
        for trial in abandoned:
            self._end_unfinished(trial._trial_id, LOST)
        return len(abandoned)

    def _is_abandoned(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs["worker"]
        if owners.is_local(worker):
            return owners.is_gone(worker)
        heard_s = max(float(trial.user_attrs["heartbeat_s"]), self._database.back_since_s)
        return time.time() - heard_s > self._ttl_s  # while the database was away no worker could be heard

    def _is_ours(self, claim: Claim) -> bool:
        """Whether the database still has this claim."""
        try:
            trial = self._database.call(lambda: self._storage.get_trial(claim.trial_id))
            is_ours = bool(trial.user_attrs.get("token") == claim.token)
        except RecordGone:
            is_ours = False
        if not is_ours:
            self._has_lost_records = True
            _log.warning("the study's record of slot %d is gone: its claim is lost", claim.candidate.slot)
        return is_ours

    def _gone(self) -> StudyGone:
        where = self._database.where
        return StudyGone(f"study '{self.name}' is not in {where} any longer: run the search again, or restore it")

    def _try_claim(self, candidate: Candidate) -> Claim | None:
        """Add a RUNNING trial and look who came first."""
        if self.failed_attempts(candidate.slot) >= ATTEMPTS:
            self._add(candidate, TrialState.COMPLETE, float("inf"), reason="lost its worker at every attempt")
            return None
        token = uuid4().hex
        self._add(candidate, TrialState.RUNNING, None, token=token)
        rivals = [t for t in self._trials(TrialState.RUNNING, *ENDED) if t.user_attrs["slot"] == candidate.slot]
        mine = [t for t in rivals if t.user_attrs.get("token") == token]
        won = bool(mine) and rivals[0] is mine[0]
        for trial in mine[1:] if won else mine:
            self._end_unfinished(trial._trial_id, YIELDED)
        return Claim(mine[0]._trial_id, candidate, token) if won else None

    def _add(self, candidate: Candidate, state: TrialState, loss_nats: float | None, **extra: str) -> None:
        attributes = candidate.attributes() | {
            "worker": owners.owner(),
            "heartbeat_s": time.time(),
            **extra,
        }
        parameters = trial_parameters(candidate)
        trial = optuna.trial.create_trial(
            state=state,
            values=None if loss_nats is None else self._values(candidate, loss_nats),
            params=parameters,
            distributions={name: DISTRIBUTIONS[name] for name in parameters},
            user_attrs=attributes,
        )
        try:
            self._database.call(lambda: self._study.add_trial(trial))
        except RecordGone as error:
            raise self._gone() from error

    def _trials(self, *states: TrialState) -> list[FrozenTrial]:
        """In the order of their numbers."""
        try:
            return self._database.call(lambda: self._study.get_trials(deepcopy=False, states=states))
        except RecordGone as error:
            raise self._gone() from error

    def _report(self, claim: Claim, losses_nats: Mapping[int, float]) -> None:
        """As Optuna's intermediate values, by step; ignored on a trial that another process has ended meanwhile."""
        for step, loss_nats in losses_nats.items():
            try:
                self._database.call(
                    partial(self._storage.set_trial_intermediate_value, claim.trial_id, step, loss_nats)
                )
            except UpdateFinishedTrialError:
                return
            except RecordGone:
                self._has_lost_records = True

    def _end_unfinished(self, trial_id: int, reason: str) -> None:
        self._set_attribute(trial_id, "reason", reason)
        self._finish(trial_id, TrialState.FAIL)

    def _set_attribute(self, trial_id: int, key: str, value: Any, patience_s: float | None = None) -> None:
        """Ignored on a trial that another process has ended meanwhile, and on one whose record is gone."""
        try:
            self._database.call(lambda: self._storage.set_trial_user_attr(trial_id, key, value), patience_s)
        except UpdateFinishedTrialError:
            return
        except RecordGone:
            self._has_lost_records = True

    def _finish(self, trial_id: int, state: TrialState, values: Sequence[float] | None = None) -> bool:
        try:
            return bool(self._database.call(lambda: self._storage.set_trial_state_values(trial_id, state, values)))
        except UpdateFinishedTrialError:
            return False
        except RecordGone:
            self._has_lost_records = True
            return False

    def _values(self, candidate: Candidate, loss_nats: float, recall_accuracy: float = 0.0) -> list[float]:
        """In the order of the study's objectives."""
        return [loss_nats, candidate.latency_ms, recall_accuracy][: len(self._study.directions)]


def _finished(trial: FrozenTrial) -> FinishedTrial:
    losses = tuple(sorted(trial.intermediate_values.items()))
    last_step = losses[-1][0] if losses else 0
    return FinishedTrial(
        loss_nats=float(trial.values[0]),
        losses_by_step=losses,
        pruned_at_step=last_step if trial.state == TrialState.PRUNED else None,
        **{name: trial.user_attrs.get(name) for name in ("test_loss_nats", "recall_accuracy")},
        **{name: trial.user_attrs[name] for name in CANDIDATE_FIELDS},
        sizes=trial.user_attrs.get("sizes", {}),
    )


def _sampler() -> optuna.samplers.BaseSampler:
    return optuna.samplers.RandomSampler()  # never asked: the proposer fills the slots

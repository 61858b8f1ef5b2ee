"""One search worker: claim a slot, train its candidate, record the loss, until every slot is finished."""

import math
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from flashslm.search.database import DatabaseRefused, DatabaseUnavailable
from flashslm.search.halving import CandidatePruned
from flashslm.search.study import Claim, SearchStudy
from flashslm.search.trial import Candidate, FinishedTrial, TrialFailed
from flashslm.training.spec import TrainOutcome

POLL_S = (0.05, 5.0)  # first and longest pause while other workers hold all open slots

Train = Callable[[Candidate], TrainOutcome]
OnTrial = Callable[[Candidate, TrainOutcome], None]


class Proposes(Protocol):
    """Fills slots with candidates: those that can be filled once the trials of a history are finished."""

    def propose(self, history: Iterable[FinishedTrial]) -> list[Candidate]: ...


@dataclass
class WorkerSummary:
    """What this worker did, and how many trials the study has finished in all."""

    trained: int = 0
    pruned: int = 0
    failed: int = 0
    completed: int = 0
    waited_s: float = 0.0


def run_worker(study: SearchStudy, proposer: Proposes, train: Train, on_trial: OnTrial | None = None) -> WorkerSummary:
    """Work until no slot is left. `train` may raise TrialFailed and CandidatePruned; any other exception frees the slot
    and propagates.

    A database that was away may have come back without its last records, so after an outage the study is read whole,
    and slots that miss a trial are worked off again: a later slot's candidate depends on all earlier trials.
    """
    summary = WorkerSummary()
    while not _is_finished(study, proposer, train, on_trial, summary):
        study.read_again()
    return summary


def _is_finished(
    study: SearchStudy, proposer: Proposes, train: Train, on_trial: OnTrial | None, summary: WorkerSummary
) -> bool:
    """Work off all slots, by this worker or others; False as soon as the study may have lost trials."""
    pause_s = POLL_S[0]
    while open_candidates := _open_candidates(study, proposer):
        claim = study.claim(open_candidates)
        if claim is None:
            time.sleep(pause_s)
            summary.waited_s += pause_s
            pause_s = min(1.5 * pause_s, POLL_S[1])
        else:
            pause_s = POLL_S[0]
            _work_off(study, claim, train, on_trial, summary)
        if study.may_have_changed:
            return False
    study.read_again()
    summary.completed = len(study.finished())
    return not _open_candidates(study, proposer) and not study.may_have_changed


def _open_candidates(study: SearchStudy, proposer: Proposes) -> list[Candidate]:
    """Proposed by now and not finished."""
    history = study.finished()
    finished = {trial.slot for trial in history}
    return [candidate for candidate in proposer.propose(history) if candidate.slot not in finished]


def _work_off(study: SearchStudy, claim: Claim, train: Train, on_trial: OnTrial | None, summary: WorkerSummary) -> None:
    """Train a claim's candidate and record what came of it; an unexpected error gives the slot back."""
    try:
        with study.heartbeat(claim):
            outcome = train(claim.candidate)
        if not math.isfinite(outcome.validation_loss_nats):
            raise TrialFailed(f"the proxy loss is {outcome.validation_loss_nats}")
    except CandidatePruned as pruned:
        study.prune(claim, pruned)
        summary.pruned += 1
    except (TrialFailed, MemoryError) as error:
        study.fail(claim, str(error))
        summary.failed += 1
    except BaseException:
        with suppress(DatabaseUnavailable, DatabaseRefused):  # a claim of a worker that is gone is taken over
            study.release(claim)
        raise
    else:
        study.complete(claim, outcome)
        summary.trained += 1
        if on_trial is not None:
            on_trial(claim.candidate, outcome)

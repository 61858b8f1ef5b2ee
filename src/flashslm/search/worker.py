"""One search worker: claim a slot, train its candidate, record the loss, until every slot is finished."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

from flashslm.search.evolution import Proposer
from flashslm.search.study import Claim, SearchStudy
from flashslm.search.trial import Candidate, TrialFailed
from flashslm.training.spec import TrainOutcome

POLL_S = (0.05, 5.0)  # first and longest pause while other workers hold all open slots

Train = Callable[[Candidate], TrainOutcome]
OnTrial = Callable[[Candidate, TrainOutcome], None]


@dataclass
class WorkerSummary:
    """What this worker did, and how many trials the study has finished in all."""

    trained: int = 0
    failed: int = 0
    completed: int = 0
    waited_s: float = 0.0


def run_worker(study: SearchStudy, proposer: Proposer, train: Train, on_trial: OnTrial | None = None) -> WorkerSummary:
    """Work until no slot is left. `train` may raise TrialFailed; any other exception frees the slot and propagates.

    A database that was away may have come back without its last records, so after an outage the study is read whole,
    and cycles that miss a trial are worked off again: a later cycle's candidates depend on all earlier trials.
    """
    summary = WorkerSummary()
    while not _is_finished(study, proposer, train, on_trial, summary):
        study.read_again()
    return summary


def _is_finished(
    study: SearchStudy, proposer: Proposer, train: Train, on_trial: OnTrial | None, summary: WorkerSummary
) -> bool:
    """Work off all cycles; False as soon as the study may have lost trials."""
    wanted: set[int] = set()
    for cycle in range(proposer.num_cycles):
        candidates = proposer.propose(cycle, study.finished())
        wanted |= {c.slot for c in candidates}
        if study.may_have_changed or not _work_off(study, candidates, train, on_trial, summary):
            return False
    study.read_again()
    finished = {t.slot for t in study.finished()}
    summary.completed = len(finished)
    return wanted <= finished and not study.may_have_changed


def _work_off(
    study: SearchStudy,
    candidates: list[Candidate],
    train: Train,
    on_trial: OnTrial | None,
    summary: WorkerSummary,
) -> bool:
    """Train free candidates of one cycle until all of it is finished, by this worker or others.

    False if the study may have lost trials meanwhile.
    """
    pause_s = POLL_S[0]
    wanted = {c.slot for c in candidates}
    while not wanted <= {t.slot for t in study.finished()}:
        claim = study.claim(candidates)
        if claim is None:
            time.sleep(pause_s)
            summary.waited_s += pause_s
            pause_s = min(1.5 * pause_s, POLL_S[1])
        else:
            pause_s = POLL_S[0]
            outcome = _train_claim(study, claim, train)
            if outcome is None:
                summary.failed += 1
            else:
                summary.trained += 1
                if on_trial is not None:
                    on_trial(claim.candidate, outcome)
        if study.may_have_changed:
            return False
    return not study.may_have_changed


def _train_claim(study: SearchStudy, claim: Claim, train: Train) -> TrainOutcome | None:
    """The outcome, recorded; None for a failure, recorded too."""
    try:
        with study.heartbeat(claim):
            outcome = train(claim.candidate)
        if not math.isfinite(outcome.validation_loss_nats):
            raise TrialFailed(f"the proxy loss is {outcome.validation_loss_nats}")
    except (TrialFailed, MemoryError) as error:
        study.fail(claim, str(error))
        return None
    except BaseException:
        study.release(claim)
        raise
    study.complete(claim, outcome)
    return outcome

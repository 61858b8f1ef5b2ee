import itertools
import math
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from optuna.trial import TrialState
from sqlalchemy.exc import InternalError, OperationalError, ProgrammingError

from flashslm.infra import outages
from flashslm.infra.process import owners
from flashslm.infra.process.interrupts import Terminated
from flashslm.search import database
from flashslm.search.database import DatabaseRefused, DatabaseUnavailable
from flashslm.search.study import ATTEMPTS, SearchStudy, StudyGone
from flashslm.search.trial import TrialFailed
from flashslm.search.worker import run_worker
from tests.unit.search.databases import file_of, locked
from tests.unit.search.synthetic import loss_nats, run_serially
from tests.unit.search.worker_process import TRIALS, make_search
from tests.unit.training.tiny import outcome
from tests.waiting import wait_until

ROOT = Path(__file__).parents[3]
LIMIT_S = 300.0


@pytest.fixture
def url(tmp_path):
    return f"sqlite:///{tmp_path}/made/on/demand/study.db"


@pytest.fixture(scope="module")
def expected():
    """The search's history, computed without any study."""
    return run_serially(make_search())


def train(candidate):
    return outcome(loss_nats(candidate.operators), train_time_s=2.0)


def start_process(url: str, endless_from: int = TRIALS) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.unit.search.worker_process", url, str(endless_from)]
    return subprocess.Popen(command, cwd=ROOT)


def trials_in(url: str, state: TrialState):
    return optuna.load_study(study_name="search", storage=url).get_trials(states=(state,))


def test_one_worker_runs_the_whole_search(url, expected):
    study, seen = SearchStudy.open(url, "search"), []
    summary = run_worker(
        study, make_search(), train, on_trial=lambda c, o: seen.append((c.slot, o.validation_loss_nats))
    )
    assert study.finished() == expected
    assert seen == [(t.slot, t.loss_nats) for t in expected]
    assert (summary.trained, summary.failed, summary.completed) == (TRIALS, 0, TRIALS)
    assert study.train_time_s() == 2.0 * TRIALS


def test_a_finished_search_is_not_run_again(url, expected):
    run_worker(SearchStudy.open(url, "search"), make_search(), train)
    again = run_worker(SearchStudy.open(url, "search"), make_search(), pytest.fail)
    assert (again.trained, again.completed) == (0, TRIALS)


@pytest.mark.parametrize("proposals", ["cycles", "window"])
def test_four_threads_give_the_history_of_one_worker(url, proposals):
    expected = run_serially(make_search(proposals=proposals))

    met, calls = threading.Barrier(2), itertools.count()

    def slow(candidate):
        if next(calls) < 2:
            met.wait(LIMIT_S)  # the first two are two workers'
        return train(candidate)

    def work(_):
        return run_worker(SearchStudy.open(url, "search"), make_search(proposals=proposals), slow)

    with ThreadPoolExecutor(4) as pool:
        summaries = list(pool.map(work, range(4)))
    assert SearchStudy.open(url, "search").finished() == expected
    assert sum(s.trained for s in summaries) == TRIALS, "no slot is trained twice"
    assert sum(s.trained > 0 for s in summaries) > 1


def test_three_processes_one_killed_give_the_history_of_one_worker(url, expected):
    holder = start_process(url, endless_from=0)
    wait_until(lambda: Path(url.removeprefix("sqlite:///")).exists())
    study = SearchStudy.open(url, "search")
    wait_until(lambda: study_running(study))  # with others beside it, it might come when they have done everything
    others = [start_process(url) for _ in range(2)]
    wait_until(lambda: len(study.finished()) > 1)
    holder.send_signal(signal.SIGKILL)
    assert [w.wait(LIMIT_S) for w in (holder, *others)] == [-signal.SIGKILL, 0, 0]
    assert study.finished() == expected


def study_running(study):
    return study._trials(TrialState.RUNNING)


def test_killed_in_mid_trial_and_restarted_gives_the_history_of_an_unkilled_search(url, expected):
    worker = start_process(url, endless_from=7)
    wait_until(lambda: Path(url.removeprefix("sqlite:///")).exists())
    study = SearchStudy.open(url, "search")
    wait_until(lambda: len(study.finished()) >= 7 and study_running(study))
    worker.send_signal(signal.SIGKILL)
    worker.wait(LIMIT_S)
    done, left = study.finished(), study_running(study)
    assert done == expected[: len(done)] and len(left) <= 1
    summary = run_worker(study, make_search(), train)
    assert study.finished() == expected
    assert summary.trained == TRIALS - len(done)
    assert [t.user_attrs["reason"] for t in trials_in(url, TrialState.FAIL)] == ["lost"] * len(left)


def test_a_failed_training_is_retried_twice_and_then_counts_as_infinite_loss(url):
    attempts = []

    def diverging(candidate):
        if "A" in candidate.operators:
            attempts.append(candidate.slot)
            return outcome(math.nan)
        return train(candidate)

    study = SearchStudy.open(url, "search")
    summary = run_worker(study, make_search(), diverging)
    history = study.finished()
    assert history == run_serially(make_search(), lambda o: math.inf if "A" in o else loss_nats(o))
    failed = [t.slot for t in history if not t.succeeded]
    assert sorted(attempts) == sorted(failed * ATTEMPTS)
    assert summary.failed == len(attempts)
    reasons = {t.user_attrs["reason"] for t in trials_in(url, TrialState.FAIL)}
    assert reasons == {"failed: the proxy loss is nan"}


def test_a_training_that_recovers_keeps_its_loss(url, expected):
    failures = iter([True, True])

    def flaky(candidate):
        if candidate.slot == 3 and next(failures, False):
            raise TrialFailed("out of memory")
        return train(candidate)

    study = SearchStudy.open(url, "search")
    run_worker(study, make_search(), flaky)
    assert study.finished() == expected


def test_an_error_of_the_program_frees_the_slot_and_goes_on_up(url, expected):
    def broken(candidate):
        if candidate.slot == 7:
            raise KeyError("no such dataset")
        return train(candidate)

    study = SearchStudy.open(url, "search")
    for _ in range(ATTEMPTS + 1):
        with pytest.raises(KeyError):
            run_worker(study, make_search(), broken)
    run_worker(study, make_search(), train)
    assert study.finished() == expected


@pytest.mark.usefixtures("quick_outages")
def test_a_database_that_is_away_does_not_replace_what_ends_the_worker(url):
    study = SearchStudy.open(url, "search", patience_s=0.3)
    with ExitStack() as away:

        def ended(candidate):
            away.enter_context(locked(url))
            raise Terminated(143)

        with pytest.raises(Terminated):
            run_worker(study, make_search(), ended)


def test_rivals_for_a_slot_do_not_share_it(url):
    candidates = make_search().propose([])
    gate = threading.Barrier(6)

    def rival(_):
        study = SearchStudy.open(url, "search")
        gate.wait()
        claim = study.claim(candidates)
        return claim.candidate.slot if claim else None

    with ThreadPoolExecutor(6) as pool:
        claimed = [slot for slot in pool.map(rival, range(6)) if slot is not None]
    assert len(claimed) == len(set(claimed)), "two workers hold one slot"
    assert 0 in claimed


@pytest.fixture
def quick_outages(monkeypatch):
    """An outage is said after a tenth of a second, and sqlite waits for its lock no longer."""
    monkeypatch.setattr(outages, "_FIRST_SAID_AFTER_S", 0.1)
    monkeypatch.setattr(database, "_SQLITE_LOCK_S", 0.1)


@pytest.mark.usefixtures("quick_outages")
def test_a_database_that_is_away_during_the_search_is_waited_for(url, expected):
    heard, begun, gone = [], threading.Event(), threading.Event()

    def slow(candidate):
        if candidate.slot == 9 and not begun.is_set():
            begun.set()
            gone.wait(LIMIT_S)
        return train(candidate)

    def take_away():
        begun.wait(LIMIT_S)
        with locked(url):
            gone.set()
            wait_until(lambda: heard)

    study = SearchStudy.open(url, "search")
    thread = threading.Thread(target=take_away)
    thread.start()
    with outages.heard_by(lambda kind, sentence: heard.append(f"{kind}: {sentence}")):
        summary = run_worker(study, make_search(), slow)
    thread.join()
    assert study.finished() == expected and summary.completed == TRIALS
    assert heard[0].startswith("study database: study database at sqlite:///") and "has been away for" in heard[0]
    assert "answers again" in heard[-1]


@pytest.mark.usefixtures("quick_outages")
def test_a_result_is_read_from_a_database_that_comes_back(url, expected):
    """What select_architecture does."""
    run_worker(SearchStudy.open(url, "search"), make_search(), train)
    with ThreadPoolExecutor(1) as pool, locked(url):
        reading = pool.submit(lambda: SearchStudy.open(url, "search", patience_s=LIMIT_S).finished())
        time.sleep(1.0)
        assert not reading.done()
    assert reading.result() == expected


@pytest.mark.usefixtures("quick_outages")
def test_patience_for_a_database_ends(url):
    study = SearchStudy.open(url, "search", patience_s=0.5)
    with locked(url), pytest.raises(DatabaseUnavailable, match=r"sqlite:///.* does not answer: .*locked"):
        study.finished()


@pytest.mark.usefixtures("quick_outages")
def test_a_heartbeat_does_not_hold_a_training_up(url):
    study = SearchStudy.open(url, "search")
    claim = study.claim(make_search().propose([]))
    with locked(url), study.heartbeat(claim, every_s=0.01):
        time.sleep(0.3)
    assert study.complete(claim, outcome(1.0))


def test_a_database_that_is_not_there_at_the_start_is_waited_for():
    started_s = time.monotonic()
    with pytest.raises(DatabaseUnavailable, match=r"postgresql\+psycopg2://u:\*\*\*@127.0.0.1:1/x does not answer"):
        SearchStudy.open("postgresql+psycopg2://u:hunter2@127.0.0.1:1/x", "search", patience_s=1.0)
    assert time.monotonic() - started_s > 0.9


def test_a_wrong_password_is_not_waited_for():
    error = OperationalError("", {}, Exception('FATAL:  password authentication failed for user "flashslm"'))
    assert not database._is_outage(error)
    assert database._is_outage(OperationalError("", {}, Exception("server closed the connection unexpectedly")))
    assert database._is_outage(InternalError("", {}, Exception("cannot execute INSERT in a read-only transaction")))
    assert not database._is_outage(ProgrammingError("", {}, Exception("syntax error")))


def test_a_refusal_after_a_long_outage_is_tried_again_at_once(url, monkeypatch):
    """Workers that waited together make the tables together: one of them is refused, and that passes in a moment."""
    monkeypatch.setattr(outages, "_SHORTEST_PAUSE_S", 0.0)
    study, pauses = SearchStudy.open(url, "search"), []
    monkeypatch.setattr(database, "time", SimpleNamespace(sleep=pauses.append, time=time.time))
    away = [OperationalError("", {}, Exception("connection refused"))] * 60
    answers = iter([*away, ProgrammingError("", {}, Exception("relation already exists")), "made"])

    def operation():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert study._database.call(operation, patience_s=LIMIT_S) == "made"
    assert pauses == [0.1]


def test_a_mistake_in_the_database_is_said_in_its_own_words(url):
    study = SearchStudy.open(url, "search")
    with sqlite3.connect(file_of(url)) as connection:
        connection.execute("DROP TABLE trials")
    with pytest.raises(DatabaseRefused, match=r"sqlite:///.* refuses: no such table: trials"):
        study.finished()


def lose_records(url: str, where: str) -> None:
    """What a restored database does not hold any longer."""
    with sqlite3.connect(file_of(url)) as connection:
        lost = [row[0] for row in connection.execute(f"SELECT trial_id FROM trials WHERE {where}")]
        for table in ("trial_params", "trial_values", "trial_user_attributes", "trials"):
            connection.executemany(f"DELETE FROM {table} WHERE trial_id = ?", [(trial,) for trial in lost])


@pytest.mark.parametrize("where", ["state = 'RUNNING'", "trial_id > 4"], ids=["its claim", "a part of the history"])
def test_records_that_are_gone_cost_their_trials_only(url, expected, where, caplog):
    """The database goes back in time while this worker trains slot 9; ids of what is lost are given to new trials."""
    trained = []

    def forgetful(candidate):
        trained.append(candidate.slot)
        if trained.count(9) == 1 and candidate.slot == 9:
            lose_records(url, where)
        return train(candidate)

    study = SearchStudy.open(url, "search")
    summary = run_worker(study, make_search(), forgetful)
    assert study.finished() == expected and summary.completed == TRIALS
    assert trained.count(9) == 2 and "its claim is lost" in caplog.text
    assert (len(trained) == TRIALS + 1) == where.startswith("state")


def test_a_claim_whose_id_went_to_another_trial_does_not_end_that_one(url):
    study = SearchStudy.open(url, "search")
    candidates = make_search().propose([])
    mine = study.claim(candidates)
    lose_records(url, "1")
    other = SearchStudy.open(url, "search")
    theirs = other.claim(candidates[1:])
    assert theirs.trial_id == mine.trial_id
    assert not study.complete(mine, outcome(1.0))
    study.fail(mine, "diverged")
    study.release(mine)
    assert other.complete(theirs, outcome(2.0)) and [t.loss_nats for t in other.finished()] == [2.0]


def test_a_worker_ends_only_when_the_study_is_gone(url):
    def deletes(candidate):
        if candidate.slot == 5:
            optuna.delete_study(study_name="search", storage=url)
        return train(candidate)

    with pytest.raises(StudyGone, match=r"study 'search' is not in sqlite:///.* any longer: run the search again"):
        run_worker(SearchStudy.open(url, "search"), make_search(), deletes)


def test_a_candidate_that_takes_its_workers_down_is_given_up(url):
    study = SearchStudy.open(url, "search")
    candidates = make_search().propose([])
    for _ in range(ATTEMPTS):
        assert study.claim(candidates).candidate.slot == 0
        pretend_worker(study, f"{owners.machine()} {os.getpid()} 0.0")  # a recycled process id
    assert study.claim(candidates).candidate.slot == 1
    assert study.finished()[0].loss_nats == math.inf


def test_a_silent_worker_on_another_host_loses_its_claim_only_after_the_ttl(url):
    study = SearchStudy.open(url, "search", ttl_s=30.0)
    candidates = make_search().propose([])
    claim = study.claim(candidates)
    pretend_worker(study, "elsewhere 1 0.0")
    assert study.take_over_abandoned() == 0
    study._set_attribute(claim.trial_id, "heartbeat_s", time.time() - 31.0)
    assert study.lost_workers(0) == []
    assert study.take_over_abandoned() == 1
    assert study.lost_workers(0) == ["elsewhere 1 0.0"] and study.lost_workers(1) == []
    assert not study.complete(claim, outcome(1.0)), "the slot belongs to another worker now"
    assert study.finished() == []


def pretend_worker(study, owner):
    for trial in study_running(study):
        study._set_attribute(trial._trial_id, "worker", owner)


def test_heartbeat_is_written_while_training(url):
    study = SearchStudy.open(url, "search")
    claim = study.claim(make_search().propose([]))
    before = study_running(study)[0].user_attrs["heartbeat_s"]
    with study.heartbeat(claim, every_s=0.01):
        wait_until(lambda: study_running(study)[0].user_attrs["heartbeat_s"] > before)

"""A search worker as a process of its own: `worker_process.py URL SLOT`. From that slot on a trial does not end."""

import sys
import time

from flashslm.search.study import SearchStudy
from flashslm.search.worker import run_worker
from tests.unit.search.synthetic import loss_nats, make_proposer
from tests.unit.training.tiny import outcome

TRIALS = 18


def make_search(**search):
    return make_proposer(trials=TRIALS, population=6, sample=3, candidates_per_cycle=4, **search)


def main(url: str, endless_from: int) -> None:
    def train(candidate):
        time.sleep(600 if candidate.slot >= endless_from else 0.05)
        return outcome(loss_nats(candidate.operators))

    run_worker(SearchStudy.open(url, "search"), make_search(), train)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))

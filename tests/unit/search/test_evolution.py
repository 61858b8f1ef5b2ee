import random

import pytest

from flashslm.models.architecture import InfeasibleArchitecture
from flashslm.search.evolution import Proposer
from flashslm.search.mutation import MUTATIONS, neighbours
from flashslm.search.space import KNOWN_DESIGNS, parse_design
from tests.unit.search.synthetic import finish, loss_nats, make_proposer, run_serially


def test_no_architecture_is_proposed_twice():
    history = run_serially(make_proposer(trials=400, population=16))
    assert len(history) == 400
    assert len({t.operators for t in history}) == 400
    assert [t.slot for t in history] == list(range(400))


def test_a_candidate_depends_on_earlier_cycles_only():
    proposer = make_proposer()
    history = run_serially(proposer)
    shuffled = random.Random(1).sample(history, len(history))
    assert make_proposer().propose(shuffled) == proposer.propose(history)
    for cycle in range(8):
        earlier = [t for t in shuffled if t.cycle < cycle]
        assert make_proposer().propose(earlier) == proposer.propose(history)[: 5 * (cycle + 1)]
    first_cycles = [t for t in history if t.cycle < 2]
    assert make_proposer(seed=1).propose(first_cycles)[10:] != proposer.propose(history)[10:15]


def in_any_order(proposer, seed, in_training):
    """A search whose trials finish in random order, of so many that are in training."""
    rng, history, running = random.Random(seed), [], []
    while True:
        done = {t.slot for t in history}
        waiting = [c for c in proposer.propose(history) if c.slot not in done and c not in running]
        running += waiting[: in_training - len(running)]
        if not running:
            return sorted(history, key=lambda t: t.slot)
        candidate = running.pop(rng.randrange(len(running)))
        history.append(finish(candidate, loss_nats(candidate.operators)))


@pytest.mark.parametrize("proposals", ["cycles", "window"])
@pytest.mark.parametrize("in_training", [1, 3, 8])
def test_the_order_in_which_trials_finish_decides_nothing(proposals, in_training):
    expected = run_serially(make_proposer(proposals=proposals))
    assert in_any_order(make_proposer(proposals=proposals), in_training, in_training) == expected


def test_a_window_has_no_barrier_between_cycles():
    """The slowest trial of a cycle holds up only slots that are a whole window behind it."""
    proposer = make_proposer(proposals="window", candidates_per_cycle=4)
    history = [finish(c, loss_nats(c.operators)) for c in proposer.propose([])]
    assert [t.slot for t in history] == [0, 1, 2, 3]
    without_the_third = [t for t in history if t.slot != 2]
    assert [c.slot for c in make_proposer(proposals="window", candidates_per_cycle=4).propose(without_the_third)] == [
        *range(6)
    ]
    in_cycles = make_proposer(candidates_per_cycle=4)
    assert len(in_cycles.propose(without_the_third)) == 4


def test_a_trial_that_a_database_lost_is_proposed_again():
    proposer = make_proposer(proposals="window")
    history = run_serially(proposer)
    lost = [t for t in history if t.slot != 11]
    assert [c.slot for c in proposer.propose(lost)] == list(range(11 + 5))
    assert proposer.propose(history) == make_proposer(proposals="window").propose(history)


def test_random_search_trains_random_designs_alone():
    history = run_serially(make_proposer(strategy="random", seeding="none"))
    assert len(history) == 40 and {t.mutation for t in history} == {"random"}
    with_seeds = run_serially(make_proposer(strategy="random", seed_designs=("DF",)))
    assert [t.mutation for t in with_seeds] == ["seed"] + 39 * ["random"]


def test_seeds_can_be_left_to_the_law_or_out():
    law = ("(DF)x3",)
    assert [d.notation for d in law_seeded("law", law)] == ["(DF)x3"]
    assert law_seeded("none", law) == []
    assert [d.notation for d in law_seeded("designs", law)] == ["(DF)x3", "(M)x4"]
    assert run_serially(make_proposer(seeding="none"))[0].mutation == "random"


def law_seeded(seeding, law):
    proposer = make_proposer(seeding=seeding, seed_designs=("(M)x4",))
    return Proposer(proposer.config, proposer.fitter, 0, law).seed_designs


def test_first_slots_are_known_designs_then_random():
    history = run_serially(make_proposer(population=10))
    assert [t.notation for t in history[:5]] == list(KNOWN_DESIGNS[:5])
    assert [t.mutation for t in history[:10]] == ["seed"] * 5 + ["random"] * 5
    assert {t.mutation for t in history[10:]} <= set(MUTATIONS)


def test_recipe_seeds_replace_the_known_designs():
    history = run_serially(make_proposer(seed_designs=("(AF)x2", "AFAF", "(MF)x2 | D"), trials=10))
    assert [t.notation for t in history if t.mutation == "seed"] == ["(AF)x2", "(MF)x2 | D"]


def test_children_are_one_mutation_from_the_tournaments_winner():
    proposer = make_proposer(population=10, sample=10)  # every member takes part
    history = run_serially(proposer)
    for child in history[10:]:
        earlier = [t for t in history if t.cycle < child.cycle][-10:]
        assert child.parent == min(earlier, key=lambda t: (t.loss_nats, t.slot)).slot
        parent = parse_design(history[child.parent].notation)
        children = neighbours(parent, proposer.space, child.mutation)
        assert child.operators in {c.operators for c in children}


def test_the_oldest_members_age_out():
    history = run_serially(make_proposer(trials=60, population=10, sample=10))
    best = min(history[:10], key=lambda t: t.loss_nats)
    assert all(child.parent > best.slot for child in history if child.cycle >= 6)


def test_failed_trials_are_never_parents():
    def loss(operators):
        return float("inf") if "A" in operators else loss_nats(operators)

    history = run_serially(make_proposer(trials=60), loss)
    parents = {history[t.parent].operators for t in history if t.parent is not None}
    assert parents and not any("A" in operators for operators in parents)


def test_all_candidates_meet_the_budget_at_the_largest_width():
    proposer = make_proposer(budget_ms=25.0)
    for trial in run_serially(proposer):
        assert trial.latency_ms <= 25.0
        assert proposer.fitter.fit(trial.operators)[0].hidden_size == trial.width
    assert all("more than the budget of 25 ms" in reason for reason in proposer.infeasible.values())


def test_impossible_budget_says_so():
    with pytest.raises(InfeasibleArchitecture, match="no design of the search space meets the latency budget"):
        make_proposer(budget_ms=2.0).propose([])


def test_used_up_space_ends_the_search_early():
    history = run_serially(make_proposer(max_operators=2, max_mixer_types=1, seed_designs=("D",), trials=20))
    everything = {a + b for a in ("D", "M", "A") for b in ("", "F", "D", "M", "A")}
    assert {t.operators for t in history} == everything


def test_evolution_beats_random_search():
    """Mean best loss over fixed seeds at an equal number of trials."""
    evolved, drawn = [], []
    for seed in range(6):
        common = {"trials": 120, "seed_designs": ("DF",), "seed": seed, "population": 20, "sample": 6}
        evolved.append(min(t.loss_nats for t in run_serially(make_proposer(**common))))
        drawn.append(min(t.loss_nats for t in run_serially(make_proposer(**common, strategy="random"))))
    assert sum(evolved) / 6 < sum(drawn) / 6 - 0.1
    assert sum(e < d for e, d in zip(evolved, drawn, strict=True)) >= 5

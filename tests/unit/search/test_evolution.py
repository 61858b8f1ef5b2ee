import random

import pytest

from flashslm.models.architecture import InfeasibleArchitecture
from flashslm.search.mutation import MUTATIONS, neighbours
from flashslm.search.space import KNOWN_DESIGNS, parse_design
from tests.unit.search.synthetic import loss_nats, make_proposer, run_serially


def test_no_architecture_is_proposed_twice():
    history = run_serially(make_proposer(trials=400, population=16))
    assert len(history) == 400
    assert len({t.operators for t in history}) == 400
    assert [t.slot for t in history] == list(range(400))


def test_cycle_depends_on_earlier_cycles_only():
    proposer = make_proposer()
    history = run_serially(proposer)
    shuffled = random.Random(1).sample(history, len(history))
    for cycle in range(proposer.num_cycles):
        earlier = [t for t in history if t.cycle < cycle]
        assert make_proposer().propose(cycle, shuffled) == proposer.propose(cycle, earlier)
    assert make_proposer(seed=1).propose(2, history) != proposer.propose(2, history)


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
        make_proposer(budget_ms=2.0).propose(0, [])


def test_used_up_space_ends_the_search_early():
    history = run_serially(make_proposer(max_operators=2, max_mixer_types=1, seed_designs=("D",), trials=20))
    everything = {a + b for a in ("D", "M", "A") for b in ("", "F", "D", "M", "A")}
    assert {t.operators for t in history} == everything


def test_evolution_beats_random_search():
    """Mean best loss over fixed seeds; random search is the same proposer with every trial in the first population."""
    evolved, drawn = [], []
    for seed in range(6):
        common = {"trials": 120, "seed_designs": ("DF",), "seed": seed}
        evolved.append(min(t.loss_nats for t in run_serially(make_proposer(population=20, sample=6, **common))))
        drawn.append(min(t.loss_nats for t in run_serially(make_proposer(population=120, **common))))
    assert sum(evolved) / 6 < sum(drawn) / 6 - 0.1
    assert sum(e < d for e, d in zip(evolved, drawn, strict=True)) >= 5

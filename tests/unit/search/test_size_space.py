"""A search that varies sizes inside operators: one value of each for all layers of a candidate."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import optuna
import pytest

from flashslm.config import OWN_SIZES, ModelConfig, OperatorSizes, SizeChoice
from flashslm.models.accounting import parameters
from flashslm.models.architecture import InfeasibleArchitecture, build_architecture
from flashslm.profiling.latency_table import LatencyTable
from flashslm.search.evolution import Proposer
from flashslm.search.finalists import Finalists, judge_finalists
from flashslm.search.mutation import MUTATIONS, SIZES, mutate, neighbours
from flashslm.search.size_space import SizeSpace
from flashslm.search.space import SearchSpace
from flashslm.search.study import SearchStudy
from flashslm.search.trial import Candidate, FinishedTrial
from flashslm.search.worker import run_worker
from tests.unit.search.synthetic import BUDGET_MS, WIDTHS, finish, loss_nats, make_proposer, make_sized_table
from tests.unit.training.tiny import outcome

VALUES = {"ffn_ratio": [2, 3, 6], "mamba_state": [64, 128], "head_dim": [32, 64]}
SPACE = SearchSpace(30, 2, SizeSpace(OperatorSizes.model_validate(VALUES)))
OWN = SizeChoice(3.0, 128, 64)


def sized_loss_nats(candidate: Candidate) -> float:
    """Lower with wide FFNs and small heads, whatever the operators are."""
    sizes = candidate.sizes
    return loss_nats(candidate.operators) - 0.5 * (sizes.ffn_ratio == 6) - 0.5 * (sizes.head_dim == 32)


def run(proposer: Proposer, loss: Callable[[Candidate], float] = sized_loss_nats) -> list[FinishedTrial]:
    history: list[FinishedTrial] = []
    while waiting := proposer.propose(history)[len(history) :]:
        history += [finish(candidate, loss(candidate)) for candidate in waiting]
    return history


@pytest.fixture(scope="module")
def history() -> list[FinishedTrial]:
    return run(make_proposer(sizes=VALUES, trials=60))


def test_every_candidate_is_built_priced_and_counted_by_its_own_sizes(history: list[FinishedTrial]) -> None:
    table = make_sized_table(OperatorSizes.model_validate(VALUES))
    assert len({tuple(trial.sizes.items()) for trial in history}) > 4
    for trial in history:
        sizes = SizeChoice(**trial.sizes).applied_to(ModelConfig())
        built = build_architecture(trial.operators, trial.width, sizes, 512)
        assert (trial.digest, trial.parameters) == (built.digest, parameters(built)["total"])
        assert trial.latency_ms == table.predict_ms(built, 1024, 1) <= BUDGET_MS


def test_the_search_finds_the_sizes_that_learn_best(history: list[FinishedTrial]) -> None:
    best = min(history, key=lambda trial: trial.loss_nats)
    assert (best.sizes["ffn_ratio"], best.sizes["head_dim"]) == (6, 32)
    late = [trial.sizes["ffn_ratio"] for trial in history[-20:]]
    assert late.count(6) > 20 / 3, "more than by chance"


def test_seed_designs_have_the_recipes_sizes(history: list[FinishedTrial]) -> None:
    seeds = [trial for trial in history if trial.mutation == "seed"]
    assert seeds and all(trial.sizes == OWN.given() for trial in seeds)


def test_a_child_has_its_parents_sizes_or_another_value_of_one(history: list[FinishedTrial]) -> None:
    by_slot = {trial.slot: trial for trial in history}
    children = [(trial, by_slot[trial.parent]) for trial in history if trial.parent is not None]
    changed = [(t, p) for t, p in children if t.mutation == SIZES]
    assert changed and all(t.operators == p.operators for t, p in changed)
    assert all(sum(t.sizes[name] != p.sizes[name] for name in t.sizes) == 1 for t, p in changed)
    for trial, parent in children:
        if trial.mutation != SIZES:
            inherited = SPACE.sizes.effective(trial.operators, SizeChoice(**parent.sizes))
            assert trial.sizes == inherited.given()


def test_no_architecture_is_trained_twice() -> None:
    """3 and 3.2 are the same FFN at all of these widths; a design of one operator and a width leaves few others."""
    tried = run(make_proposer(sizes={"ffn_ratio": [3, 3.2]}, max_operators=2, max_mixer_types=1, trials=18))
    assert len({trial.digest for trial in tried}) == len(tried) == 3 + 3 + 9  # A and its like, AF, AD
    assert {trial.sizes["ffn_ratio"] for trial in tried if "F" not in trial.operators} == {3.0}


def test_a_size_that_no_operator_depends_on_is_the_recipes() -> None:
    other = SizeChoice(6.0, 64, 32)
    assert SPACE.sizes.effective("DFMF", other) == other
    assert SPACE.sizes.effective("DA", other) == SizeChoice(3.0, 128, 32)
    assert SPACE.sizes.effective("MF", other) == SizeChoice(6.0, 64, 64)
    assert {choice.mamba_state for choice in SPACE.sizes.neighbours("DF", OWN)} == {128}
    assert SPACE.sizes.neighbours("MF", OWN) == [OWN._replace(ffn_ratio=r) for r in (2.0, 6.0)] + [
        OWN._replace(mamba_state=64)
    ]


def test_a_mutation_of_sizes_is_one_kind_among_five() -> None:
    design = SPACE.parse("(DFMF)x2")
    drawn = list(mutate(design, SPACE, random.Random(0)))
    everything = [child for kind in (*MUTATIONS, SIZES) for child in neighbours(design, SPACE, kind)]
    assert sorted(map(str, everything)) == sorted(str(child) for _, child in drawn)
    assert [child.notation for kind, child in drawn if kind == SIZES] == [design.notation] * 4
    assert {child.sizes for kind, child in drawn if kind == "repeats"} == {OWN}


def test_random_designs_draw_each_value() -> None:
    rng = random.Random(0)
    drawn = {SPACE.sizes.sample("DFMF", rng) for _ in range(200)}
    assert len(drawn) == 3 * 2 * 2


def test_without_sizes_nothing_is_drawn_kept_or_changed() -> None:
    plain, rng = SearchSpace(30, 2), random.Random(0)
    before = rng.getstate()
    assert plain.sizes.sample("DFMF", rng) == plain.sizes.own_choice() == OWN_SIZES and rng.getstate() == before
    assert SIZES not in {kind for kind, _ in mutate(plain.parse("DFMF"), plain, rng)}
    for trial in run(make_proposer()):
        assert trial.sizes == {} and "sizes" not in trial.record()


def test_an_interrupted_search_goes_on_to_the_same_trials(tmp_path: Path) -> None:
    url, settings = f"sqlite:///{tmp_path}/study.db", {"sizes": VALUES, "trials": 30}
    trained = []

    def train(candidate: Candidate):
        trained.append(candidate.slot)
        if len(trained) == 17:
            raise KeyboardInterrupt
        return outcome(sized_loss_nats(candidate))

    with pytest.raises(KeyboardInterrupt):
        run_worker(SearchStudy.open(url, "search"), make_proposer(**settings), train)
    study = SearchStudy.open(url, "search")
    run_worker(study, make_proposer(**settings), train)
    expected = run(make_proposer(**settings))
    found = [replace(trial, losses_by_step=()) for trial in study.finished()]
    assert found == expected and len(trained) == 31
    params = {t.user_attrs["slot"]: t.params for t in optuna.load_study(study_name="search", storage=url).get_trials()}
    assert all(params[trial.slot].items() >= trial.sizes.items() for trial in expected)
    assert all(trial.record()["sizes"] == trial.sizes for trial in expected)


def test_finalists_keep_their_sizes(history: list[FinishedTrial]) -> None:
    def build(trial: FinishedTrial):
        sizes = SizeChoice(**trial.sizes).applied_to(ModelConfig())
        return build_architecture(trial.operators, trial.width, sizes, 512)

    config = make_proposer(finalists=2, finalist_seeds=1).config
    candidates = Finalists(config, 5, history, BUDGET_MS, build).propose([])
    by_slot = {trial.slot: trial for trial in history}
    assert [c.architecture.digest for c in candidates] == [by_slot[c.parent or 0].digest for c in candidates]
    runs = [replace(finish(candidate, 1.0), test_loss_nats=1.0) for candidate in candidates]
    assert {f.slot: f.sizes for f in judge_finalists(runs)} == {c.parent: c.sizes.given() for c in candidates}


def test_a_design_too_slow_names_its_sizes() -> None:
    fitter = make_proposer(sizes=VALUES).fitter
    slow = replace(fitter, budget_ms=3.0)
    with pytest.raises(InfeasibleArchitecture, match=r"DF with ffn_ratio 6, head_dim 32 takes .* width 64"):
        slow.fit("DF", SizeChoice(ffn_ratio=6.0, head_dim=32))
    assert fitter.fit("DF", SizeChoice(ffn_ratio=6.0))[0].ffn_size == 6 * WIDTHS[-1]


def test_a_value_that_was_not_measured_ends_the_search_before_it_begins() -> None:
    proposer, width = make_proposer(sizes={"mamba_state": [64, 128]}), WIDTHS[0]
    table = proposer.fitter.table.model_dump()
    left = {"operator": "M", "width": width, "context": 1024, "batch": 1, "size": 64, "reason": "needs 99 GB"}
    table["entries"] = [e for e in table["entries"] if (e["width"], e.get("size")) != (width, 64)]
    fitter = replace(proposer.fitter, table=LatencyTable.model_validate(table | {"left_out": [left]}))
    missing = rf"M with mamba_state 64 at width {width}, .* \(it needs 99 GB\); .*, mamba_state \[64\] besides"
    with pytest.raises(ValueError, match=missing):
        Proposer(proposer.config, fitter, seed=0)

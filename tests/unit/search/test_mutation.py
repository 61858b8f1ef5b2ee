import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flashslm.search.mutation import MUTATIONS, mutate, neighbours
from flashslm.search.space import Design, SearchSpace

SPACE = SearchSpace(max_operators=30, max_mixer_types=2)
WIDE_SPACE = SearchSpace(max_operators=30, max_mixer_types=3)
ROOMY = SearchSpace(max_operators=200, max_mixer_types=3)  # the depth limit never cuts here

designs = st.integers(0, 2**32).map(lambda seed: WIDE_SPACE.sample(random.Random(seed)))


@settings(deadline=None)
@given(designs, st.sampled_from(sorted(MUTATIONS)))
def test_children_are_new_and_within_the_limits(design, kind):
    for child in neighbours(design, WIDE_SPACE, kind):
        assert child.operators != design.operators
        assert len(child.operators) <= 30
        assert child in WIDE_SPACE
        assert WIDE_SPACE.parse(child.notation) == child


def changed_blocks(parent: Design, child: Design):
    assert len(parent.blocks) == len(child.blocks)
    pairs = [(a, b) for a, b in zip(parent.blocks, child.blocks, strict=True) if a != b]
    assert len(set(pairs)) == 1, "one block type changes into one other"
    return pairs[0]


@settings(deadline=None)
@given(designs)
def test_operator_mutation_swaps_one_mixer_only(design):
    for child in neighbours(design, ROOMY, "operator"):
        before, after = changed_blocks(design, child)
        assert (before.counts, before.ffns) == (after.counts, after.ffns)
        assert sum(a != b for a, b in zip(before.mixers, after.mixers, strict=True)) == 1


@settings(deadline=None)
@given(designs)
def test_ffn_mutation_changes_one_mixers_ffns_only(design):
    for child in neighbours(design, ROOMY, "ffn"):
        before, after = changed_blocks(design, child)
        assert (before.counts, before.mixers) == (after.counts, after.mixers)
        assert sum(a != b for a, b in zip(before.ffns, after.ffns, strict=True)) == 1


@settings(deadline=None)
@given(designs)
def test_ratio_mutation_keeps_types_order_and_ffns(design):
    for child in neighbours(design, ROOMY, "ratio"):
        before, after = changed_blocks(design, child)
        assert before.counts != after.counts
        small, large = sorted((before, after), key=lambda block: len(block.mixers))
        assert len(large.mixers) - len(small.mixers) <= 1
        ffns = dict(zip(large.mixers, large.ffns, strict=True))
        kept = [(m, f) for m, f in ffns.items() if m in small.mixers]
        assert kept == list(zip(small.mixers, small.ffns, strict=True))


@settings(deadline=None)
@given(designs)
def test_repeats_mutation_keeps_the_stages_units(design):
    for child in neighbours(design, ROOMY, "repeats"):
        assert [stage.unit for stage in child.stages] == [stage.unit for stage in design.stages]
        deltas = [b.repeats - a.repeats for a, b in zip(design.stages, child.stages, strict=True)]
        assert sorted(d for d in deltas if d) in ([-1], [1], [-1, 1])


def test_depth_limit_cuts_only_the_last_stages_repeats():
    parent = SPACE.parse("(DFMF)x2 | (AFMF)x2 | (MF)x7")
    children = {child.notation for child in neighbours(parent, SPACE, "ffn")}
    assert "(DFFMF)x2 | (AFMF)x2 | (MF)x6" in children


@settings(deadline=None, max_examples=30)
@given(designs)
def test_mutation_draws_every_neighbour_once(design):
    drawn = [child.operators for _, child in mutate(design, WIDE_SPACE, random.Random(0))]
    everything = [c.operators for kind in MUTATIONS for c in neighbours(design, WIDE_SPACE, kind)]
    assert sorted(drawn) == sorted(everything)


def test_alternation_arises_and_folds_back():
    plain, winner = SPACE.parse("(DFMF)x6"), SPACE.parse("(DFMF AFMF)x2 | (DFMF)x2")
    assert winner in neighbours(plain, SPACE, "operator")
    assert plain in neighbours(winner, SPACE, "operator")


def test_a_stage_is_divided_only_while_three_stages_suffice():
    parts = {child.notation for child in neighbours(SPACE.parse("(DF)x3 | A | M"), SPACE, "operator")}
    assert "(MF)x3 | A | M" in parts
    assert not any(notation.startswith("(DF)x2") for notation in parts)


PATHS = {
    "latency winner": (
        SPACE,
        ["DF", "DFMF", "(DFMF)x2", "(DFMF)x3", "(DFMF)x4", "(DFMF)x5", "(DFMF)x6", "(DFMF AFMF)x2 | (DFMF)x2"],
    ),
    "parameter winner, interleaved": (
        SPACE,
        [
            *["DF", "MF", "MFAF", "(MFAF)x2", "MFAF MF", "MFAF DF", "(MFAF DF)x2", "(MFAF DF)x3", "(MFAF DF)x4"],
            *["(MFAFAF DF)x3 | MFAF DF", "(MFAFAF D)x3 | MFAF DF", "(MFAFAF D)x3 | MFAF DFF"],
        ],
    ),
    "parameter winner, three types": (
        WIDE_SPACE,
        [
            *["DF", "MF", "MFAF", "MFAFDF", "(MFAFDF)x2", "(MFAFDF)x3", "(MFAFDF)x4", "(MFAFAFDF)x3 | MFAFDF"],
            *["(MFAFAFD)x3 | MFAFDF", "(MFAFAFD)x3 | MFAFDFF"],
        ],
    ),
}


@pytest.mark.parametrize("name", PATHS)
def test_published_winners_are_reachable_from_one_block(name):
    space, notations = PATHS[name]
    for before, after in pairwise(space.parse(notation) for notation in notations):
        assert any(after in neighbours(before, space, kind) for kind in MUTATIONS), after.notation


@pytest.mark.parametrize("seed", range(12))
def test_one_block_is_reachable_from_everywhere(seed):
    design = WIDE_SPACE.sample(random.Random(seed))
    for _ in range(60):
        children = [child for kind in MUTATIONS for child in neighbours(design, WIDE_SPACE, kind)]
        design = min([design, *children], key=lambda d: (len(d.operators), len(set(d.operators)), d.operators != "D"))
        if design.operators == "D":
            break
    assert WIDE_SPACE.parse("DF") in neighbours(design, WIDE_SPACE, "ffn")

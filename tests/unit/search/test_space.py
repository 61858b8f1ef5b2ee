import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flashslm.models.architecture import InfeasibleArchitecture
from flashslm.search.space import KNOWN_DESIGNS, BlockType, SearchSpace, ratios

SPACE = SearchSpace(max_operators=30, max_mixer_types=2)
WIDE_SPACE = SearchSpace(max_operators=30, max_mixer_types=3)


def test_latency_winner_is_in_the_space():
    design = SPACE.parse("(DFMF AFMF)x2 | (DFMF)x2")
    assert design.operators == "DFMFAFMFDFMFAFMFDFMFDFMF"
    assert design in SPACE
    assert design.notation == "(DFMF AFMF)x2 | (DFMF)x2"
    assert design.stages[0].unit == (BlockType("DM", (1, 1), (1, 1)), BlockType("AM", (1, 1), (1, 1)))
    assert [stage.repeats for stage in design.stages] == [2, 2]


@pytest.mark.parametrize(
    ("space", "notation"), [(WIDE_SPACE, "(MFAFAFD)x3 | MFAFDFF"), (SPACE, "(MFAFAF D)x3 | MFAF DFF")]
)
def test_parameter_winner_is_in_the_space(space, notation):
    design = space.parse(notation)
    assert design.operators == "MFAFAFD" * 3 + "MFAFDFF"
    assert design in space


def test_three_mixer_types_in_a_block_need_the_wider_space():
    with pytest.raises(InfeasibleArchitecture, match="max_mixer_types"):
        SPACE.parse("(MFAFAFD)x3")


@pytest.mark.parametrize("notation", KNOWN_DESIGNS)
def test_known_designs_are_in_the_space_as_published(notation):
    design = SPACE.parse(notation)
    assert design in SPACE
    assert design.notation == notation


@pytest.mark.parametrize(
    "notation",
    ["DFMF DFMF DFMF", "(DFMF)x3", "DFMFDFMFDFMF", "(DFMF DFMF)x1 | DFMF", "dfmf|dfmf|dfmf", "( DFMF ) x 2 | (DFMF)"],
)
def test_every_way_of_writing_gives_one_design(notation):
    assert SPACE.parse(notation) == SPACE.parse("(DFMF)x3")


@pytest.mark.parametrize(
    ("notation", "reason"),
    [
        ("", "not of the form"),
        ("(DFMF)x0", "not of the form"),
        ("FDMF", "begin with a mixer"),
        ("DFQF", "begin with a mixer"),
        ("DFMFDF", "distinct mixer types"),
        ("DFFF", "0 to 2 FFNs"),
        ("DDDDM", "ratio"),
        ("D M A", "interleaves 3"),
        ("D | M | A | D", "4 stages"),
        ("(D M) x 2 x 3", "not of the form"),
        ("(DFMF AFAFMFF)x4 | D", "max_operators"),
    ],
)
def test_designs_outside_the_space_say_why(notation, reason):
    with pytest.raises(InfeasibleArchitecture, match=reason):
        SPACE.parse(notation)


def test_depth_limit_cuts_the_last_stage():
    assert SPACE.parse("(DF)x10 | (MFAF)x7").notation == "(DF)x10 | (MFAF)x2"
    assert SearchSpace(8, 2).parse("(DF)x12").notation == "(DF)x4"


def test_ratios():
    assert ratios(1) == [(1,)]
    assert ratios(2) == [(1, 1), (1, 2), (1, 3), (2, 1), (3, 1)]
    assert (1, 2, 1) in ratios(3) and (2, 2, 1) not in ratios(3)


@given(st.integers(1, 40), st.integers(1, 3), st.integers(0, 2**32))
def test_samples_are_in_the_space_and_their_notation_is_lossless(max_operators, max_types, seed):
    space = SearchSpace(max_operators, max_types)
    design = space.sample(random.Random(seed))
    assert design in space
    assert space.parse(design.notation) == design
    assert design.operators == "".join(block.operators for block in design.blocks)


def test_samples_cover_the_space():
    rng = random.Random(0)
    designs = [SPACE.sample(rng) for _ in range(500)]
    assert len({d.operators for d in designs}) > 450
    assert {len(d.operators) for d in designs} >= set(range(4, 31))
    assert any(len(stage.unit) == 2 for d in designs for stage in d.stages)

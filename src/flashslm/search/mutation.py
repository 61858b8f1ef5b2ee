"""The paper's four mutations (Nemotron-Flash, app. C): each changes one factor of a design and keeps the depth limit.

Where sizes inside operators are searched, a fifth one takes another value of one of them; the others keep the parent's.

All neighbours of a design are enumerated, so a mutation is one fair draw and a used-up neighbourhood is known as such.
A design of one or two distinct stages is one of three of which some are alike, divided anywhere: a mutation may change
a part of a stage as long as three stages are not exceeded. Where the part repeats one block type an even number of
times, it may also change every second block only: so `(DFMF AFMF)x2` arises from `(DFMF)x4`, and folds back.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import combinations, permutations

from flashslm.models.operator_spec import EXPORTABLE_MIXERS
from flashslm.search.space import MAX_FFNS, MAX_STAGES, BlockType, Design, SearchSpace, Stage, canonical, ratios

BlockChange = Callable[[BlockType, SearchSpace], Iterator[BlockType]]


def mutate(design: Design, space: SearchSpace, rng: random.Random) -> Iterator[tuple[str, Design]]:
    """Every single mutation of `design` as (kind, child): a random kind at a time, its children in random order."""
    kinds = [*MUTATIONS, *([SIZES] if space.sizes.neighbours(design.operators, design.sizes) else [])]
    rng.shuffle(kinds)
    for kind in kinds:
        children = neighbours(design, space, kind)
        rng.shuffle(children)
        yield from ((kind, child) for child in children)


def neighbours(design: Design, space: SearchSpace, kind: str) -> list[Design]:
    """The distinct children of one kind of mutation, each with operators, or with sizes, other than the parent's."""
    if kind == SIZES:
        return [replace(design, sizes=sizes) for sizes in space.sizes.neighbours(design.operators, design.sizes)]
    found: dict[str, Design] = {}
    for stages in MUTATIONS[kind](design, space):
        child = space.limited(canonical(stages))
        if child is not None and child in space and child.operators != design.operators:
            sizes = space.sizes.effective(child.operators, design.sizes)
            found.setdefault(child.operators, replace(child, sizes=sizes))
    return list(found.values())


def _change_blocks(change: BlockChange) -> Callable[[Design, SearchSpace], Iterator[list[Stage]]]:
    """Apply a change to each block type of each part of the design."""

    def mutation(design: Design, space: SearchSpace) -> Iterator[list[Stage]]:
        for before, part, after in _parts(design):
            for position, block in enumerate(part.unit):
                for changed in change(block, space):
                    unit = (*part.unit[:position], changed, *part.unit[position + 1 :])
                    yield [*before, Stage(unit, part.repeats), *after]

    return mutation


def _parts(design: Design) -> Iterator[tuple[list[Stage], Stage, list[Stage]]]:
    """Every run of a stage's repeats that can be a stage by itself, with the stages before and after it."""
    for index, stage in enumerate(design.stages):
        for first, end in combinations(range(stage.repeats + 1), 2):
            before = [*design.stages[:index], *([Stage(stage.unit, first)] if first else [])]
            rest = stage.repeats - end
            after = [*([Stage(stage.unit, rest)] if rest else []), *design.stages[index + 1 :]]
            if len(before) + len(after) < MAX_STAGES:
                yield before, Stage(stage.unit, end - first), after
                if len(stage.unit) == 1 and (end - first) % 2 == 0:
                    yield before, Stage(stage.unit * 2, (end - first) // 2), after


def _swap_operator(block: BlockType, _: SearchSpace) -> Iterator[BlockType]:
    """Another mixer type in one place; its count and FFNs stay."""
    for position in range(len(block.mixers)):
        for mixer in _absent(EXPORTABLE_MIXERS, block.mixers):
            yield replace(block, mixers=block.mixers[:position] + mixer + block.mixers[position + 1 :])


def _change_ratio(block: BlockType, space: SearchSpace) -> Iterator[BlockType]:
    """Other counts of the same types; a type leaves (1:1 to 0:1) or joins with the FFNs of its neighbour."""
    types = len(block.mixers)
    for counts in ratios(types):
        if counts != block.counts:
            yield replace(block, counts=counts)
    if types > 1:
        for i in range(types):
            rest = _without(block.counts, i)
            counts = rest if rest in ratios(types - 1) else (1,) * (types - 1)
            yield BlockType(block.mixers[:i] + block.mixers[i + 1 :], counts, _without(block.ffns, i))
    if types < space.max_mixer_types:
        for mixer, i in ((m, i) for m in _absent(EXPORTABLE_MIXERS, block.mixers) for i in range(types + 1)):
            ffns = block.ffns[max(0, i - 1)]
            yield BlockType(
                block.mixers[:i] + mixer + block.mixers[i:],
                (*block.counts[:i], 1, *block.counts[i:]),
                (*block.ffns[:i], ffns, *block.ffns[i:]),
            )


def _change_ffns(block: BlockType, _: SearchSpace) -> Iterator[BlockType]:
    """Another number of FFNs after one mixer type."""
    for position, present in enumerate(block.ffns):
        for ffns in range(MAX_FFNS + 1):
            if ffns != present:
                yield replace(block, ffns=(*block.ffns[:position], ffns, *block.ffns[position + 1 :]))


def _change_repeats(design: Design, _: SearchSpace) -> Iterator[list[Stage]]:
    """One repeat more or less in a stage, or one moved from a stage to another."""
    count = len(design.stages)
    single = [{i: delta} for i in range(count) for delta in (1, -1)]
    moved = [{i: -1, j: 1} for i, j in permutations(range(count), 2)]
    for deltas in single + moved:
        stages = [Stage(s.unit, s.repeats + deltas.get(i, 0)) for i, s in enumerate(design.stages)]
        if all(stage.repeats >= 1 for stage in stages):
            yield stages


def _absent(types: str, present: str) -> list[str]:
    return [t for t in types if t not in present]


def _without(values: tuple[int, ...], index: int) -> tuple[int, ...]:
    return values[:index] + values[index + 1 :]


SIZES = "sizes"  # the kind that changes no operators
MUTATIONS: dict[str, Callable[[Design, SearchSpace], Iterator[list[Stage]]]] = {
    "operator": _change_blocks(_swap_operator),
    "ratio": _change_blocks(_change_ratio),
    "ffn": _change_blocks(_change_ffns),
    "repeats": _change_repeats,
}

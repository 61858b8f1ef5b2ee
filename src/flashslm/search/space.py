"""The search space: up to three stages, each repeating a unit of one or two block types (Nemotron-Flash, app. C).

A block type holds one to three mixer types in a ratio, each instance followed by its type's 0-2 FFNs: M:A:D = 1:2:1
with 1, 1, 0 FFNs is `MFAFAFD`. Both published winners lie outside the space as printed, so a stage may interleave two
block types (`DFMF AFMF`), which the paper's latency winner does, and FFN counts belong to the mixer type.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby, product
from typing import TypeVar

from flashslm.config import OWN_SIZES, SizeChoice
from flashslm.models.architecture import MAX_OPERATORS, InfeasibleArchitecture
from flashslm.models.operator_spec import EXPORTABLE_MIXERS, FFN, LABELS, export_blockers
from flashslm.search.size_space import SizeSpace

MAX_STAGES = 3
MAX_INTERLEAVED = 2  # block types in a stage's unit
MAX_RATIO = 3
MAX_FFNS = 2

# The paper's two winners (table 2) and plain families; the search starts from these where a recipe names no others.
KNOWN_DESIGNS = (
    "(DFMF AFMF)x2 | (DFMF)x2",
    "(MFAFAF D)x3 | MFAF DFF",
    "(DF)x12",
    "(MF)x12",
    "(AF)x12",
    "(AFMF)x6",
    "(DFMF)x6",
)

T = TypeVar("T")


@dataclass(frozen=True)
class BlockType:
    """Mixer types in order, how often each comes, and the FFNs after each instance of it."""

    mixers: str
    counts: tuple[int, ...]
    ffns: tuple[int, ...]

    @property
    def operators(self) -> str:
        return "".join((m + FFN * f) * n for m, n, f in zip(self.mixers, self.counts, self.ffns, strict=True))


@dataclass(frozen=True)
class Stage:
    """A unit of block types, repeated."""

    unit: tuple[BlockType, ...]
    repeats: int

    @property
    def operators(self) -> str:
        return "".join(block.operators for block in self.unit) * self.repeats

    @property
    def notation(self) -> str:
        unit = " ".join(block.operators for block in self.unit)
        return f"({unit})x{self.repeats}" if self.repeats > 1 else unit


@dataclass(frozen=True)
class Design:
    """One to three stages in canonical form (see `canonical`), and the sizes inside operators that are searched.

    Equal `operators` and `sizes` are the same architecture.
    """

    stages: tuple[Stage, ...]
    sizes: SizeChoice = OWN_SIZES

    @cached_property
    def operators(self) -> str:
        return "".join(stage.operators for stage in self.stages)

    @property
    def notation(self) -> str:
        return " | ".join(stage.notation for stage in self.stages)

    @property
    def blocks(self) -> tuple[BlockType, ...]:
        return tuple(block for stage in self.stages for block in stage.unit * stage.repeats)


@dataclass(frozen=True)
class SearchSpace:
    """The limits of a search."""

    max_operators: int
    max_mixer_types: int
    sizes: SizeSpace = field(default_factory=SizeSpace)

    def __contains__(self, design: Design) -> bool:
        types = max(len(block.mixers) for block in design.blocks)
        return len(design.operators) <= self.max_operators and types <= self.max_mixer_types

    def limited(self, design: Design) -> Design | None:
        """The design with the last stage's repeats cut to the depth limit (app. C); None if that cannot do."""
        *kept, last = design.stages
        free = self.max_operators - (len(design.operators) - len(last.operators))
        repeats = min(last.repeats, free * last.repeats // len(last.operators))
        return replace(design, stages=(*kept, Stage(last.unit, repeats))) if repeats >= 1 else None

    def parse(self, notation: str) -> Design:
        """A recipe's seed design, cut to the depth limit; InfeasibleArchitecture says why it lies outside the space."""
        design = replace(parse_design(notation), sizes=self.sizes.own_choice())
        limited = self.limited(design)
        if limited is None:
            raise InfeasibleArchitecture(
                f"design '{notation}' has {len(design.operators)} operators and cutting its last stage does not bring "
                f"it to search.max_operators ({self.max_operators})"
            )
        if limited not in self:
            raise InfeasibleArchitecture(
                f"design '{notation}' has a block with more mixer types than search.max_mixer_types "
                f"({self.max_mixer_types}): split the block with a blank, as in 'MFAFAF D'"
            )
        return limited

    def sample(self, rng: random.Random) -> Design:
        """A random design: units first, then repeats up to a random depth, then sizes."""
        design = self._sample_stages(rng)
        return replace(design, sizes=self.sizes.sample(design.operators, rng))

    def _sample_stages(self, rng: random.Random) -> Design:
        while True:
            units = [self._sample_unit(rng) for _ in range(rng.randint(1, MAX_STAGES))]
            sizes = [sum(len(block.operators) for block in unit) for unit in units]
            if sum(sizes) > self.max_operators:
                continue
            depth, repeats = rng.randint(sum(sizes), self.max_operators), [1] * len(units)
            while fitting := [i for i, size in enumerate(sizes) if _dot(sizes, repeats) + size <= depth]:
                repeats[rng.choice(fitting)] += 1
            return canonical([Stage(unit, n) for unit, n in zip(units, repeats, strict=True)])

    def _sample_unit(self, rng: random.Random) -> tuple[BlockType, ...]:
        return tuple(self._sample_block(rng) for _ in range(rng.randint(1, MAX_INTERLEAVED)))

    def _sample_block(self, rng: random.Random) -> BlockType:
        types = rng.randint(1, self.max_mixer_types)
        mixers = "".join(rng.sample(EXPORTABLE_MIXERS, types))
        return BlockType(mixers, rng.choice(ratios(types)), tuple(rng.randint(0, MAX_FFNS) for _ in mixers))


def ratios(types: int) -> list[tuple[int, ...]]:
    """Every allowed ratio of this many mixer types: 1:1, 1:2, 1:3 and their like, one type above 1 at most."""
    if types == 1:
        return [(1,)]
    counts = product(range(1, MAX_RATIO + 1), repeat=types)
    return [c for c in counts if sum(n > 1 for n in c) <= 1]


def canonical(stages: Sequence[Stage]) -> Design:
    """One form for every way of writing the same stages.

    `(X X)xN` becomes `(X)x2N` and neighbours that repeat the same unit become one stage; InfeasibleArchitecture when
    more than three are left.
    """
    merged: list[Stage] = []
    for stage in stages:
        unit, times = _period(list(stage.unit))
        repeats = times * stage.repeats
        if merged and merged[-1].unit == tuple(unit):
            repeats += merged.pop().repeats
        merged.append(Stage(tuple(unit), repeats))
    if len(merged) > MAX_STAGES:
        raise InfeasibleArchitecture(f"a design has {len(merged)} stages: at most {MAX_STAGES} are allowed")
    return Design(tuple(merged))


def parse_design(notation: str) -> Design:
    """Read `(DFMF AFMF)x2 | (DFMF)x2`: blanks part block types, `|` parts stages; plain repeats are folded."""
    if len(notation) > MAX_OPERATORS:
        raise InfeasibleArchitecture(f"design '{notation[:40]}…': more than {MAX_OPERATORS} characters")
    try:
        return canonical([_parse_stage(text) for text in notation.upper().replace("X", "x").split("|")])
    except InfeasibleArchitecture as error:
        raise InfeasibleArchitecture(f"design '{notation}': {error}") from None


def _parse_stage(text: str) -> Stage:
    match = re.fullmatch(r"\s*(?:\(([A-Z\s]+)\)\s*(?:x\s*(\d{1,4}))?|([A-Z\s]+))\s*", text)
    words = ((match[1] or match[3]) if match else "").split()
    repeats = int(match[2] or 1) if match else 0
    if not words or repeats < 1:
        raise InfeasibleArchitecture(f"stage '{text.strip()}' is not of the form '(DFMF AFMF)x2' or 'DFMF AFMF'")
    unit, times = _period([block for word in words for block in _parse_blocks(word)])
    if len(unit) > MAX_INTERLEAVED:
        raise InfeasibleArchitecture(
            f"stage '{text.strip()}' interleaves {len(unit)} block types, at most {MAX_INTERLEAVED} are allowed: "
            "part stages with '|'"
        )
    return Stage(tuple(unit), times * repeats)


def _parse_blocks(word: str) -> list[BlockType]:
    """One block type, or its repeats written out (`DFMFDFMF`)."""
    if blockers := export_blockers(word):
        raise InfeasibleArchitecture(f"block '{word}' cannot be exported: {'; '.join(blockers)}")
    if not word.startswith(tuple(EXPORTABLE_MIXERS)) or set(word) - {*EXPORTABLE_MIXERS, FFN}:
        raise InfeasibleArchitecture(
            f"block '{word}' must begin with a mixer ({', '.join(EXPORTABLE_MIXERS)}) and hold only mixers and "
            f"{FFN} ({LABELS[FFN]})"
        )
    instances, times = _period(re.findall(f"[{EXPORTABLE_MIXERS}]{FFN}*", word))
    runs = [(instance, len(list(group))) for instance, group in groupby(instances)]
    block = BlockType(
        "".join(instance[0] for instance, _ in runs),
        tuple(count for _, count in runs),
        tuple(len(instance) - 1 for instance, _ in runs),
    )
    if len(set(block.mixers)) < len(runs) or block.counts not in ratios(len(runs)) or max(block.ffns) > MAX_FFNS:
        raise InfeasibleArchitecture(
            f"block '{word}' is not one of distinct mixer types in a ratio such as 1:1, 1:2 or 1:3 with 0 to "
            f"{MAX_FFNS} FFNs each: part its blocks with a blank"
        )
    return [block] * times


def _period(items: list[T]) -> tuple[list[T], int]:
    """The shortest list whose repeats make up `items`, and how many."""
    for size in range(1, len(items) + 1):
        times, rest = divmod(len(items), size)
        if not rest and items[:size] * times == items:
            return items[:size], times
    raise ValueError("an empty list has no period")


def _dot(a: Sequence[int], b: Sequence[int]) -> int:
    return sum(x * y for x, y in zip(a, b, strict=True))

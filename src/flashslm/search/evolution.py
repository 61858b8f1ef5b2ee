"""Aging evolution (Real et al. 2019) as a pure function from finished trials to the next candidates.

Trials are numbered slots. The candidate of a slot depends on the seed and on the trials of a fixed number of first
slots only, whichever order they finish in, so the search's course is the same for any number of workers, killed or not.
With `proposals: cycles` those are the slots of earlier cycles (slot s is of cycle s // candidates_per_cycle), and all
workers wait for the slowest trial of a cycle. With `window` they are all but the candidates_per_cycle - 1 slots before
it: no worker waits as long as fewer than that are in training. The first slots are seed designs, then random ones; the
others are mutations, or with `strategy: random` random too.
"""

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from flashslm.config import SearchConfig, SizeChoice
from flashslm.models.architecture import InfeasibleArchitecture
from flashslm.search.fit import WidthFitter
from flashslm.search.mutation import mutate
from flashslm.search.objective import best_first, of_trial
from flashslm.search.size_space import SizeSpace
from flashslm.search.space import KNOWN_DESIGNS, Design, SearchSpace, parse_design
from flashslm.search.trial import Candidate, FinishedTrial

TOURNAMENTS = 20  # draws of a parent whose neighbourhood has something new, before a random design takes the slot
RANDOM_DRAWS = 1000  # before the space counts as used up


class _Seen(NamedTuple):
    """What a slot may not have again: designs, and architectures, of which two sizes may make the same."""

    designs: set[tuple[str, SizeChoice]]
    digests: set[str]

    @classmethod
    def of(cls, trials: Sequence[FinishedTrial], candidates: Sequence[Candidate]) -> "_Seen":
        designs = {(t.operators, SizeChoice(**t.sizes)) for t in trials} | {(c.operators, c.sizes) for c in candidates}
        return cls(designs, {t.digest for t in trials} | {c.digest for c in candidates})


class Proposer:
    """Proposes the candidates of all slots; no architecture is ever proposed twice.

    All candidates meet the budget: the width is the largest that does, and a design that fits at no width is skipped.
    """

    def __init__(
        self,
        config: SearchConfig,
        fitter: WidthFitter,
        seed: int,
        extra_seed_designs: Iterable[str] = (),
    ) -> None:
        self.config, self.fitter, self.seed = config, fitter, seed
        fitter.require_measured(config.sizes)
        sizes = SizeSpace(config.sizes, fitter.sizes)
        self.space = SearchSpace(config.max_operators, config.max_mixer_types, sizes)
        self.infeasible: dict[str, str] = {}  # notation -> why it fits at no width
        self.seed_designs = self._feasible_seeds(self._seeds(list(extra_seed_designs)))
        self._proposed: list[Candidate | None] = []  # by slot; None where the space was used up
        self._basis: dict[int, FinishedTrial] = {}  # what they depend on

    def propose(self, history: Iterable[FinishedTrial]) -> list[Candidate]:
        """The candidates of all slots that can be filled by now, those of finished trials among them, in slot order.

        A pure function of the trials, in any order. Raises InfeasibleArchitecture when not even the first slots find a
        design within the budget.
        """
        finished = {trial.slot: trial for trial in history}
        if any(finished.get(slot) != trial for slot, trial in self._basis.items()):  # a database lost trials
            self._proposed, self._basis = [], {}
        while len(self._proposed) < self.config.trials and self._is_ready(len(self._proposed), finished):
            self._proposed.append(self._next(finished))
        candidates = [candidate for candidate in self._proposed if candidate is not None]
        if not candidates:
            reason = next(reversed(self.infeasible.values()), "the space is empty")
            raise InfeasibleArchitecture(f"no design of the search space meets the latency budget: {reason}")
        return candidates

    def num_known(self, slot: int) -> int:
        """How many of the first slots the candidate of this slot depends on."""
        together = self.config.candidates_per_cycle
        return slot // together * together if self.config.proposals == "cycles" else max(0, slot - together + 1)

    def known(self, slot: int, history: Iterable[FinishedTrial]) -> list[FinishedTrial]:
        """Those trials, by slot."""
        return sorted((t for t in history if t.slot < self.num_known(slot)), key=lambda t: t.slot)

    def _is_ready(self, slot: int, finished: Mapping[int, FinishedTrial]) -> bool:
        return all(c is None or c.slot in finished for c in self._proposed[: self.num_known(slot)])

    def _next(self, finished: Mapping[int, FinishedTrial]) -> Candidate | None:
        slot = len(self._proposed)
        known = self.known(slot, finished.values())
        self._basis |= {trial.slot: trial for trial in known}
        seen = _Seen.of(known, [c for c in self._proposed if c is not None])
        cycle = slot // self.config.candidates_per_cycle
        return self._fill(slot, cycle, known[-self.config.population :], seen)

    def _fill(self, slot: int, cycle: int, population: Sequence[FinishedTrial], seen: _Seen) -> Candidate | None:
        rng = random.Random(f"{self.seed}/{slot}")
        if slot < len(self.seed_designs):
            return self._candidate(self.seed_designs[slot], slot, cycle, None, "seed")
        parents = [t for t in population if t.succeeded]
        if self.config.strategy == "evolution" and slot >= self.config.population and parents:
            for _ in range(TOURNAMENTS):
                contestants = rng.sample(parents, min(self.config.sample, len(parents)))
                parent = best_first(contestants, of_trial, self.config.objective)[0]
                child = self._child(parent, slot, cycle, seen, rng)
                if child is not None:
                    return child
        return self._random(slot, cycle, seen, rng)

    def _child(self, parent: FinishedTrial, slot: int, cycle: int, seen: _Seen, rng: random.Random) -> Candidate | None:
        design = replace(parse_design(parent.notation), sizes=SizeChoice(**parent.sizes))
        for kind, changed in mutate(design, self.space, rng):
            if (changed.operators, changed.sizes) not in seen.designs:
                child = self._candidate(changed, slot, cycle, parent.slot, kind)
                if child is not None and child.digest not in seen.digests:
                    return child
        return None

    def _random(self, slot: int, cycle: int, seen: _Seen, rng: random.Random) -> Candidate | None:
        for _ in range(RANDOM_DRAWS):
            design = self.space.sample(rng)
            if (design.operators, design.sizes) not in seen.designs:
                candidate = self._candidate(design, slot, cycle, None, "random")
                if candidate is not None and candidate.digest not in seen.digests:
                    return candidate
        return None

    def _candidate(self, design: Design, slot: int, cycle: int, parent: int | None, mutation: str) -> Candidate | None:
        try:
            architecture, latency_ms = self.fitter.fit(design.operators, design.sizes)
        except InfeasibleArchitecture as error:
            self.infeasible[design.notation] = str(error)
            return None
        return Candidate(slot, cycle, design.notation, architecture, latency_ms, parent, mutation, design.sizes)

    def _seeds(self, extra: list[str]) -> list[Design]:
        """The recipe's seed designs, or without any known designs, for at most half of the population."""
        if self.config.seeding == "none":
            return []
        given = self.config.seed_designs if self.config.seeding == "designs" else ()
        designs = [self.space.parse(notation) for notation in [*extra, *given]]
        known = self.config.seeding == "designs" and not given
        return designs + (self._known()[: self.config.population // 2] if known else [])

    def _feasible_seeds(self, designs: Sequence[Design]) -> list[Design]:
        distinct = {design.operators: design for design in designs}
        return [d for d in distinct.values() if self._candidate(d, 0, 0, None, "seed") is not None]

    def _known(self) -> list[Design]:
        designs = []
        for notation in KNOWN_DESIGNS:
            try:
                designs.append(self.space.parse(notation))
            except InfeasibleArchitecture:
                continue
        return designs

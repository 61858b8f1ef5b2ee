"""Aging evolution (Real et al. 2019) as a pure function from finished trials to the next cycle's candidates.

Trials are numbered slots; slot s belongs to cycle s // candidates_per_cycle. A cycle's candidates depend on the seed,
the cycle and the finished trials of earlier cycles only, so the search's course is the same for any number of workers,
killed or not. The first slots are seed designs, then random ones; the others are mutations.
"""

import random
from collections.abc import Iterable, Sequence

from flashslm.config import SearchConfig
from flashslm.models.architecture import InfeasibleArchitecture
from flashslm.search.fit import WidthFitter
from flashslm.search.mutation import mutate
from flashslm.search.space import KNOWN_DESIGNS, Design, SearchSpace, parse_design
from flashslm.search.trial import Candidate, FinishedTrial

TOURNAMENTS = 20  # draws of a parent whose neighbourhood has something new, before a random design takes the slot
RANDOM_DRAWS = 1000  # before the space counts as used up


class Proposer:
    """Proposes every cycle's candidates; no architecture is ever proposed twice.

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
        self.space = SearchSpace(config.max_operators, config.max_mixer_types)
        self.infeasible: dict[str, str] = {}  # notation -> why it fits at no width
        self.seed_designs = self._feasible_seeds([*extra_seed_designs, *config.seed_designs])

    @property
    def num_cycles(self) -> int:
        return -(-self.config.trials // self.config.candidates_per_cycle)

    def propose(self, cycle: int, history: Sequence[FinishedTrial]) -> list[Candidate]:
        """The candidates of one cycle, fewer than its slots when the space is used up.

        Trials of this cycle and later ones are ignored. Raises InfeasibleArchitecture when not even the first cycle
        finds a design within the budget.
        """
        earlier = sorted((t for t in history if t.cycle < cycle), key=lambda t: t.slot)
        seen = {t.operators for t in earlier}
        first = cycle * self.config.candidates_per_cycle
        candidates = []
        for slot in range(first, min(first + self.config.candidates_per_cycle, self.config.trials)):
            candidate = self._fill(slot, cycle, earlier[-self.config.population :], seen)
            if candidate is not None:
                seen.add(candidate.operators)
                candidates.append(candidate)
        if cycle == 0 and not candidates:
            reason = next(reversed(self.infeasible.values()), "the space is empty")
            raise InfeasibleArchitecture(f"no design of the search space meets the latency budget: {reason}")
        return candidates

    def _fill(self, slot: int, cycle: int, population: Sequence[FinishedTrial], seen: set[str]) -> Candidate | None:
        rng = random.Random(f"{self.seed}/{slot}")
        if slot < len(self.seed_designs):
            return self._candidate(self.seed_designs[slot], slot, cycle, None, "seed")
        parents = [t for t in population if t.succeeded]
        if slot >= self.config.population and parents:
            for _ in range(TOURNAMENTS):
                contestants = rng.sample(parents, min(self.config.sample, len(parents)))
                child = self._child(min(contestants, key=lambda t: (t.loss_nats, t.slot)), slot, cycle, seen, rng)
                if child is not None:
                    return child
        return self._random(slot, cycle, seen, rng)

    def _child(
        self, parent: FinishedTrial, slot: int, cycle: int, seen: set[str], rng: random.Random
    ) -> Candidate | None:
        for kind, design in mutate(parse_design(parent.notation), self.space, rng):
            if design.operators not in seen:
                child = self._candidate(design, slot, cycle, parent.slot, kind)
                if child is not None:
                    return child
        return None

    def _random(self, slot: int, cycle: int, seen: set[str], rng: random.Random) -> Candidate | None:
        for _ in range(RANDOM_DRAWS):
            design = self.space.sample(rng)
            if design.operators not in seen:
                candidate = self._candidate(design, slot, cycle, None, "random")
                if candidate is not None:
                    return candidate
        return None

    def _candidate(self, design: Design, slot: int, cycle: int, parent: int | None, mutation: str) -> Candidate | None:
        try:
            architecture, latency_ms = self.fitter.fit(design.operators)
        except InfeasibleArchitecture as error:
            self.infeasible[design.notation] = str(error)
            return None
        return Candidate(slot, cycle, design.notation, architecture, latency_ms, parent, mutation)

    def _feasible_seeds(self, notations: Sequence[str]) -> list[Design]:
        """The recipe's seed designs; without any, known designs that fit, for at most half of the population."""
        designs = [self.space.parse(notation) for notation in notations]
        if not self.config.seed_designs:
            designs += self._known()[: self.config.population // 2]
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

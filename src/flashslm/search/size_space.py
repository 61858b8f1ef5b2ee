"""The sizes that a search varies inside operators: one value of each for all layers of a design."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from flashslm.config import ModelConfig, OperatorSizes, SizeChoice
from flashslm.models.operator_spec import OPERATOR_SPECS, SIZE_FIELDS


@dataclass(frozen=True)
class SizeSpace:
    """The values of each searched size, the recipe's own (`own`) among them; by default no size is searched."""

    values: OperatorSizes = field(default_factory=OperatorSizes)
    own: ModelConfig = field(default_factory=ModelConfig)

    def own_choice(self) -> SizeChoice:
        """What seed designs have."""
        return SizeChoice(**{name: getattr(self.own, name) for name in self._names()})

    def sample(self, operators: str, rng: random.Random) -> SizeChoice:
        return self.effective(operators, SizeChoice(**{n: rng.choice(self._values(n)) for n in self._names()}))

    def effective(self, operators: str, choice: SizeChoice) -> SizeChoice:
        """The choice with the recipe's own value where none of the operators depends on the size, so that no model is
        trained twice.
        """
        own, idle = self.own_choice()._asdict(), set(self._names()) - _sizes_of(operators)
        return choice._replace(**{name: own[name] for name in idle})

    def neighbours(self, operators: str, choice: SizeChoice) -> list[SizeChoice]:
        """Every other value of one size that the operators depend on."""
        names = [name for name in self._names() if name in _sizes_of(operators)]
        changed = [choice._replace(**{name: value}) for name in names for value in self._values(name)]
        return [other for other in changed if other != choice]

    def _names(self) -> list[str]:
        return [name for name in SIZE_FIELDS if self._values(name)]

    def _values(self, name: str) -> Sequence[Any]:
        values: Sequence[Any] = getattr(self.values, name)
        return values


def _sizes_of(operators: str) -> set[str]:
    """What the operators depend on."""
    return {OPERATOR_SPECS[operator].sized_by for operator in operators}

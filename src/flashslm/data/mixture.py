"""Training batches whose rows come from several data sets, in shares that weights say."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate
from math import floor

import torch

from flashslm.data.loader import Batch, TokenLoader
from flashslm.data.order import epoch_keys, permute

ROWS_PER_PERIOD = 10_000  # over which the shares are exact


def rows_of_period(weights: Sequence[float]) -> list[int]:
    """Rows of each source in a period: by weight, rounded by largest remainder, and at least one.

    Raises ValueError where there are more sources than rows.
    """
    if len(weights) > ROWS_PER_PERIOD:
        raise ValueError(f"{len(weights):,} sources are too many: at most {ROWS_PER_PERIOD:,}")
    exact = [weight / sum(weights) * ROWS_PER_PERIOD for weight in weights]
    rows = [max(1, floor(share)) for share in exact]
    by_remainder = sorted(range(len(rows)), key=lambda i: rows[i] - exact[i])  # the one furthest below its share first
    for i in by_remainder[: max(0, ROWS_PER_PERIOD - sum(rows))]:
        rows[i] += 1
    while sum(rows) > ROWS_PER_PERIOD:  # tiny sources were given their row
        rows[max(range(len(rows)), key=lambda i: (rows[i] > 1, rows[i] / exact[i]))] -= 1
    return rows


class MixtureLoader:
    """Rows of several loaders, one after the other in an order that the seed shuffles.

    Which source a row of the run has, and which of its windows, is a pure function of seed and the row's number: a
    period of 10,000 rows has each source in its exact share, and every source shows each of its windows once per epoch
    of its own. The loaders have the same shape, seed and ranks. Raises ValueError for an empty list of sources.
    """

    def __init__(self, loaders: Mapping[str, TokenLoader], weights: Sequence[float]) -> None:
        if not loaders or len(loaders) != len(weights):
            raise ValueError(f"{len(loaders)} sources and {len(weights)} weights: give each source its weight")
        self.names, self._loaders = list(loaders), list(loaders.values())
        self._rows_of_period = rows_of_period(weights)
        self._ends = list(accumulate(self._rows_of_period))
        self._seed = self._loaders[0].seed
        self._counted = (0, [0] * len(self._loaders))  # rows looked at, and those of each source among them

    def batch(self, step: int) -> Batch:
        """int64 [B, T] each: this rank's rows of batch `step`, in the order of the run's rows."""
        first = self._loaders[0]
        picked = [self._pick(step * first.batch_size + row) for row in first.rows]
        parts, places = [], []
        for source, loader in enumerate(self._loaders):
            own = [place for place, (chosen, _) in enumerate(picked) if chosen == source]
            parts.append(loader.windows([picked[place][1] for place in own]))
            places += own
        order = torch.tensor(places).argsort()
        return Batch(*(torch.cat(tensors)[order] for tensors in zip(*parts, strict=True)))

    def rows_before(self, step: int) -> dict[str, int]:
        """Rows of each source, of all ranks together, in the batches before `step`."""
        rows = step * self._loaders[0].batch_size
        seen, counts = self._counted
        if rows < seen or rows // ROWS_PER_PERIOD > seen // ROWS_PER_PERIOD:
            seen = rows // ROWS_PER_PERIOD * ROWS_PER_PERIOD
            counts = [rows // ROWS_PER_PERIOD * share for share in self._rows_of_period]
        counts = list(counts)
        for row in range(seen, rows):
            counts[self._pick(row)[0]] += 1
        self._counted = rows, counts
        return dict(zip(self.names, counts, strict=True))

    def windows_of(self, name: str) -> int:
        """Training windows of a source: rows of one epoch."""
        return self._loaders[self.names.index(name)].num_windows

    def _pick(self, row: int) -> tuple[int, int]:
        """The source of a row of the run, and the number of its window there."""
        period, inside = divmod(row, ROWS_PER_PERIOD)
        keys = epoch_keys(f"mixture:{self._seed}", period)
        place = permute(inside, ROWS_PER_PERIOD, keys[1:])
        source = bisect_right(self._ends, place)
        share = self._rows_of_period[source]
        return source, period * share + place - (self._ends[source] - share)

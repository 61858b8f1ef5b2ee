"""Log-likelihoods of many continuations: batches by a budget of tokens, a context that several share read once."""

import logging
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch

from flashslm.evaluation.scoring import Scorer, Targets, right_padded

_log = logging.getLogger(__name__)

BATCH_TOKENS = {"cpu": 8192, "cuda": 131072}
ALIGNMENT = 16  # shared contexts are cut at a multiple, so that those of about one length share a batch
SECONDS_BETWEEN_LINES = 30.0


class Pair(NamedTuple):
    """What stands before, and what is scored."""

    context: list[int]
    continuation: list[int]


@dataclass
class SharedContext:
    """Rows that begin with the same `prefix`: the rest of each, and the runs of `Targets` that are scored in it."""

    prefix: tuple[int, ...]
    rows: dict[tuple[int, ...], list[tuple[int, int, list[int]]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def longest(self) -> int:
        return max(map(len, self.rows))


def log_likelihoods(
    scorer: Scorer, pairs: Sequence[Pair], max_length: int, batch_tokens: int = 0
) -> list[tuple[float, bool]]:
    """(nats, is it the greedy choice) of each continuation; inputs longer than `max_length` lose their beginning.

    Raises ValueError for a continuation that is longer than that.
    """
    results: list[tuple[float, bool]] = [(0.0, True)] * len(pairs)
    progress = _Progress(len(pairs))
    for batch in _batches(_shared(pairs, max_length), batch_tokens or BATCH_TOKENS[scorer.device.type]):
        owners, scored = _score(scorer, batch)
        for owner, score in zip(owners, scored, strict=True):
            results[owner] = score
        progress.add(len(owners))
    progress.say()
    return results


class _Progress:
    """Lines of the log: how many continuations are scored, twice a minute at most."""

    def __init__(self, total: int):
        self.total, self.done, self.started = total, 0, time.perf_counter()
        self.said = self.started

    def add(self, scored: int) -> None:
        self.done += scored
        if time.perf_counter() > self.said + SECONDS_BETWEEN_LINES:
            self.say()

    def say(self) -> None:
        self.said = time.perf_counter()
        _log.info(f"{self.done:,} of {self.total:,} continuations scored in {self.said - self.started:.1f} s")


def _shared(pairs: Sequence[Pair], max_length: int) -> list[SharedContext]:
    """A context of a single continuation is not shared: reading it apart would only add a step."""
    by_context: dict[tuple[int, ...], list[tuple[int, list[int]]]] = defaultdict(list)
    for owner, (context, continuation) in enumerate(pairs):
        kept = (context + continuation)[-max_length - 1 :]
        if len(continuation) >= len(kept):
            raise ValueError(
                f"a continuation of {len(continuation)} tokens exceeds max_length {max_length}, the model's positions "
                "for text: leave the task out, or train a model with a larger max_position_embeddings"
            )
        if continuation:
            by_context[tuple(kept[: len(kept) - len(continuation)])].append((owner, continuation))
    return [_group(context, members) for context, members in by_context.items()]


def _group(context: tuple[int, ...], members: list[tuple[int, list[int]]]) -> SharedContext:
    inputs = {tuple(continuation[:-1]) for _, continuation in members}
    cut = (len(context) - 1) // ALIGNMENT * ALIGNMENT if len(inputs) > 1 else 0
    group = SharedContext(context[:cut])
    for owner, continuation in members:
        row = (*context[cut:], *continuation[:-1])
        group.rows[row].append((owner, len(context) - cut - 1, continuation))
    return group


def _batches(groups: list[SharedContext], batch_tokens: int) -> Iterator[list[SharedContext]]:
    """Groups whose prefixes have one length, as many as the budget takes, padding counted; long ones first."""
    batch: list[SharedContext] = []
    rows = longest = 0
    for group in sorted(groups, key=lambda g: (-len(g.prefix), -g.longest)):
        rows, longest = rows + len(group.rows), max(longest, group.longest)
        cost = (len(batch) + 1) * len(group.prefix) + rows * longest
        if batch and (len(batch[0].prefix) != len(group.prefix) or cost > batch_tokens):
            yield batch
            batch, rows, longest = [], len(group.rows), group.longest
        batch.append(group)
    if batch:
        yield batch


def _score(scorer: Scorer, batch: list[SharedContext]) -> tuple[list[int], list[tuple[float, bool]]]:
    context = None
    if batch[0].prefix:
        index = [number for number, group in enumerate(batch) for _ in group.rows]
        prefixes = scorer.read(right_padded([group.prefix for group in batch]))  # of one length
        context = prefixes.rows(torch.tensor(index, device=scorer.device))
    rows = [row for group in batch for row in group.rows]
    found = [runs for group in batch for runs in group.rows.values()]
    targets = Targets.of_runs([(row, column, tokens) for row, runs in enumerate(found) for _, column, tokens in runs])
    owners = [owner for runs in found for owner, _, _ in runs]
    nats, greedy = scorer.score(right_padded(rows), targets, len(owners), context)
    return owners, list(zip(nats, greedy, strict=True))

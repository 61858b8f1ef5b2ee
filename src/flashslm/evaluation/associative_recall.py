"""Multi-query associative recall (MQAR; Arora et al. 2023, arXiv 2312.04927) in text of the test split.

Pairs of a key and a value, one token each, stand spread through a text that has the keys nowhere else. At its end every
key comes again, in random order and with its value, and the value must be the most likely next token.
"""

import torch
from torch import Tensor

from flashslm.data.loader import TokenLoader
from flashslm.evaluation.items import MetricItems, identity
from flashslm.evaluation.needle import HAYSTACK_TOKENS, by_depth
from flashslm.evaluation.scoring import Scorer, Targets
from flashslm.models.hybrid import HybridLM

PAIRS = 16
BATCH = 8


def evaluate_associative_recall(
    model: HybridLM, loader: TokenLoader, length: int, samples: int, seed: int
) -> tuple[list[float], MetricItems]:
    """Shares of values that were recalled: by the depth of their pair, and by text."""
    tokens_ST, pairs_SQ = plant_pairs(loader, model.embedding.weight.shape[0], length, samples, seed)
    scorer, found = Scorer(model), []
    for rows_ST in tokens_ST.split(BATCH):
        first = rows_ST.shape[1] - 2 * PAIRS
        runs = [
            (row, first + 2 * query, [int(tokens[first + 2 * query + 1])])
            for row, tokens in enumerate(rows_ST)
            for query in range(PAIRS)
        ]
        _, greedy = scorer.score(rows_ST[:, :-1], Targets.of_runs(runs), len(runs))
        found.append(torch.tensor(greedy).view(-1, PAIRS))
    right_SQ = torch.cat(found)
    in_order_SP = torch.zeros_like(right_SQ).scatter_(1, pairs_SQ, right_SQ)
    items = MetricItems(
        totals=tuple(right_SQ.double().mean(dim=1).tolist()), items_sha256=identity(tokens_ST.numpy().tobytes())
    )
    return by_depth(in_order_SP.double().mean(dim=0)), items


def plant_pairs(loader: TokenLoader, vocab_size: int, length: int, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Texts [S, T], and which pair (counted from the beginning) each of the queries [S, Q] asks for.

    Keys and values are tokens of the text, or where it has too few different ones, tokens that it does not have. Raises
    ValueError for a `length` without place.
    """
    stream = loader.tokens(0, max(HAYSTACK_TOKENS, 2 * length))
    stream = stream[stream != loader.end_of_document_id]
    candidates, hay = stream.unique(), length - 1 - 4 * PAIRS
    if hay < PAIRS:
        raise ValueError(f"mqar of {length} tokens has no place for its {PAIRS} pairs: at least {1 + 5 * PAIRS}")
    if len(candidates) < 3 * PAIRS:
        unused = torch.ones(vocab_size, dtype=torch.bool)
        unused[candidates] = unused[loader.end_of_document_id] = False
        candidates = unused.nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    made = [_plant(stream, candidates, hay, loader.end_of_document_id, generator) for _ in range(samples)]
    return torch.stack([tokens for tokens, _ in made]), torch.stack([order for _, order in made])


def _plant(
    stream_N: Tensor, candidates: Tensor, hay: int, begin_id: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    drawn = candidates[torch.randperm(len(candidates), generator=generator)[: 2 * PAIRS]]
    pairs_P2 = torch.stack([drawn[:PAIRS], drawn[PAIRS:]], dim=1)
    others = stream_N[~torch.isin(stream_N, pairs_P2[:, 0])]
    start = int(torch.randint(len(others), (1,), generator=generator))
    text = others.roll(-start).repeat(hay // len(others) + 1)[:hay]
    places_P = ((torch.arange(PAIRS) + torch.rand(PAIRS, generator=generator)) / PAIRS * (hay + 1)).long().tolist()
    parts, before = [torch.tensor([begin_id])], 0
    for place, pair in zip(places_P, pairs_P2, strict=True):
        parts += [text[before:place], pair]
        before = place
    order = torch.randperm(PAIRS, generator=generator)
    return torch.cat([*parts, text[before:], pairs_P2[order].flatten()]), order

"""Chunked reading with carried states is the whole forward pass; shared contexts and batches change no score."""

import pytest
import torch

from flashslm.evaluation import loglikelihood
from flashslm.evaluation.loglikelihood import Pair, SharedContext, log_likelihoods
from flashslm.evaluation.scoring import Scorer, Targets, right_padded
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.ops import token_scores
from tests.unit.training.tiny import SIZES

VOCABULARY = 61


@pytest.fixture(scope="module", params=["DFMFAF", "GFLFWF"])
def every_operator(request: pytest.FixtureRequest) -> HybridLM:
    """Weights large enough that tokens far back matter."""
    model = HybridLM.build(build_architecture(request.param, 32, SIZES, VOCABULARY), seed=3).eval()
    with torch.no_grad():
        model.embedding.weight *= 20
    return model.double()


@torch.no_grad()
def whole(model: HybridLM, ids: list[int], first: int) -> tuple[float, bool]:
    """Of ids from place `first` on, by one forward pass with all logits."""
    log_probs = model.logits(model(torch.tensor([ids[:-1]]))[0]).log_softmax(-1)[first - 1 :]
    targets = torch.tensor(ids[first:])
    nats = log_probs.gather(1, targets[:, None]).sum()
    return float(nats), bool((log_probs.argmax(-1) == targets).all())


@pytest.mark.parametrize("chunk", [1, 7, 16, 37, 38, 1000])
def test_carried_states_give_the_whole_forward_pass(
    every_operator: HybridLM, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Odd sizes, ragged rows, and logits of three tokens at a time."""
    monkeypatch.setitem(token_scores.CHUNK_LOGITS, "cpu", 3 * VOCABULARY)
    generator = torch.Generator().manual_seed(0)
    texts = [torch.randint(1, VOCABULARY, (n,), generator=generator).tolist() for n in (38, 9, 2, 25)]
    first = (1, 4, 1, 20)
    scorer = Scorer(every_operator, chunk)
    targets = Targets.of_runs([(row, f - 1, text[f:]) for row, (text, f) in enumerate(zip(texts, first, strict=True))])
    nats, greedy = scorer.score(right_padded([text[:-1] for text in texts]), targets, len(texts))
    for row, (text, f) in enumerate(zip(texts, first, strict=True)):
        expected, all_likely = whole(every_operator, text, f)
        assert nats[row] == pytest.approx(expected, rel=1e-5) and greedy[row] == all_likely
    tokens_BT = torch.tensor([texts[0], texts[0][::-1]])
    with torch.no_grad():
        torch.testing.assert_close(scorer.last_hidden(tokens_BT, 5), every_operator(tokens_BT)[:, -5:])


def test_rows_and_targets_are_those_of_plain_lists() -> None:
    rows = [[7, 8, 9], [], [5], [1, 2, 3, 4]]
    assert right_padded(rows).tolist() == [[7, 8, 9, 0], [0] * 4, [5, 0, 0, 0], [1, 2, 3, 4]]
    assert right_padded([(), ()]).shape == (2, 0)
    targets = Targets.of_runs([(2, 5, [40, 41, 42]), (0, 3, []), (2, 0, [43])])
    assert targets.rows_N.tolist() == [2, 2, 2, 2]
    assert targets.columns_N.tolist() == [5, 6, 7, 0]
    assert targets.tokens_N.tolist() == [40, 41, 42, 43]
    assert targets.owners_N.tolist() == [0, 0, 0, 2]
    assert {of.dtype for of in vars(targets).values()} == {torch.int64}


def test_logits_are_never_those_of_all_tokens(every_operator: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    most, scores = [0], token_scores._scores
    monkeypatch.setattr(token_scores, "_scores", lambda logits, ids: most.append(len(logits)) or scores(logits, ids))
    monkeypatch.setitem(token_scores.CHUNK_LOGITS, "cpu", 5 * VOCABULARY)
    text = [1] * 33
    Scorer(every_operator).score(torch.tensor([text]), Targets.of_runs([(0, 0, text[1:])]), 1)
    assert max(most) == 5 and sum(most) == 32


@pytest.mark.parametrize("batch_tokens", [1, 90, 10_000])
def test_shared_contexts_and_batches_change_no_score(every_operator: HybridLM, batch_tokens: int) -> None:
    generator = torch.Generator().manual_seed(1)

    def draw(count: int) -> list[int]:
        return torch.randint(1, VOCABULARY, (count,), generator=generator).tolist()

    contexts = [draw(n) for n in (1, 16, 17, 18, 33, 40)]
    pairs = [Pair(context, draw(n)) for context in contexts for n in (1, 1, 3, 6)]
    pairs += [Pair(draw(9), draw(2)), Pair(draw(60), draw(3)), Pair(contexts[3], [])]
    with torch.no_grad():
        likely = int(every_operator.logits(every_operator(torch.tensor([contexts[4]]))[0, -1]).argmax())
    pairs.append(Pair(contexts[4], [likely]))
    found = log_likelihoods(Scorer(every_operator, 11), pairs, max_length=50, batch_tokens=batch_tokens)
    for (context, continuation), (nats, greedy) in zip(pairs, found, strict=True):
        kept = (context + continuation)[-51:]
        expected = whole(every_operator, kept, len(kept) - len(continuation)) if continuation else (0.0, True)
        assert nats == pytest.approx(expected[0], rel=1e-5) and greedy == expected[1]
    assert found[-1][1]


def test_a_context_that_four_share_is_read_once(every_operator: HybridLM, monkeypatch: pytest.MonkeyPatch) -> None:
    """33 tokens of context: 32 are read once, the last one before each ending; one-token choices share a row."""
    read = [0]
    extend = every_operator.extend
    monkeypatch.setattr(every_operator, "extend", lambda t, *rest: read.append(t.numel()) or extend(t, *rest))
    scorer, context = Scorer(every_operator), list(range(1, 34))
    log_likelihoods(scorer, [Pair(context, [i, 5, 6]) for i in range(4)], 50)
    assert sum(read) == 32 + 4 * 3
    read.clear()
    log_likelihoods(scorer, [Pair(context, [i]) for i in range(4)], 50)
    assert sum(read) == 33


def test_batches_hold_their_budget_and_one_length_of_prefix() -> None:
    groups = [
        SharedContext(tuple([0] * prefix), {tuple([i] * tail): [] for i in range(rows)})
        for prefix, tail, rows in ((0, 9, 1), (0, 3, 1), (16, 5, 4), (16, 9, 2), (32, 1, 2), (0, 50, 1))
    ]
    batches = list(loglikelihood._batches(groups, 70))
    assert sorted(map(id, (g for batch in batches for g in batch))) == sorted(map(id, groups))
    for batch in batches:
        assert len({len(group.prefix) for group in batch}) == 1
        rows = sum(len(group.rows) for group in batch)
        cost = len(batch) * len(batch[0].prefix) + rows * max(group.longest for group in batch)
        assert len(batch) == 1 or cost <= 70
    assert len(batches) == 5


def test_what_is_too_long_is_refused(every_operator: HybridLM) -> None:
    scorer = Scorer(every_operator)
    with pytest.raises(ValueError, match=r"continuation of 51 tokens exceeds max_length 50, .*: leave the task out"):
        log_likelihoods(scorer, [Pair([1], [2] * 51)], 50)
    with pytest.raises(ValueError, match="rows of 3 tokens have no last 4"):
        scorer.last_hidden(torch.ones(1, 3, dtype=torch.int64), 4)


def test_cast_keeps_the_decays_in_fp32() -> None:
    model = HybridLM.build(build_architecture("DFMF", 32, SIZES, VOCABULARY), seed=3).cast(torch.bfloat16)
    kinds = {name.rpartition(".")[2]: p.dtype for name, p in model.named_parameters()}
    assert {kinds["A_log"], kinds["dt_bias"], kinds["D"]} == {torch.float32}
    assert kinds["weight"] == torch.bfloat16
    built = HybridLM.build(model.architecture, dtype=torch.bfloat16)
    assert {n: p.dtype for n, p in built.named_parameters()} == {n: p.dtype for n, p in model.named_parameters()}

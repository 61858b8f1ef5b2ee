"""Rows of a continuous batch on the device: sampling after the captured step, and the logits that it reads."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch

from flashslm.config import KernelsConfig
from flashslm.inference.continuous import ContinuousBatch
from flashslm.inference.sampling import GREEDY, Sampling
from flashslm.ops import kernels
from tests.gpu.test_model import VOCABULARY, build, default_kernels  # noqa: F401

pytestmark = pytest.mark.gpu
SPREAD = 10.0  # of the embedding: else every token is about as likely
PROMPTS = {row: list(range(3 + row, 60 + 20 * row)) for row in range(4)}
SAMPLED = Sampling(temperature=20.0, top_p=0.9, seed=3)


@pytest.fixture(params=["fused", "torch"])
def batch(request: pytest.FixtureRequest) -> ContinuousBatch:
    model = build("DFMFAF", torch.bfloat16).eval()
    with torch.no_grad():
        model.embedding.weight *= SPREAD
    kernels.configure(KernelsConfig(decode=request.param))
    made = ContinuousBatch(model, 4, 400)
    assert made.decode_graph.backend == request.param and made.decode_graph.cuda_graph is not None
    return made


def texts(batch: ContinuousBatch, samplings: dict[int, Sampling], steps: int = 20) -> dict[int, list[int]]:
    """What each row says; the others are free."""
    rows, found = sorted(samplings), {}
    for row in rows:
        batch.begin_prefill(PROMPTS[row])
        while not batch.prefill_chunk():
            pass
        found[row] = [batch.place(row, samplings[row])]
    for _ in range(steps):
        for row, token in zip(rows, batch.advance(rows), strict=True):
            found[row].append(token)
    for row in rows:
        batch.free(row)
    return found


def test_a_row_says_the_same_whatever_is_beside_it(batch: ContinuousBatch) -> None:
    other = Sampling(temperature=30.0, seed=9)
    together = texts(batch, {0: GREEDY, 1: SAMPLED, 2: GREEDY, 3: other})
    for alone in ({1: SAMPLED}, {0: GREEDY}, {2: GREEDY, 3: other}):
        assert texts(batch, alone) == {row: together[row] for row in alone}
    assert texts(batch, {1: replace(SAMPLED, seed=4)})[1] != together[1]
    assert all(0 <= token < VOCABULARY for text in together.values() for token in text)


def test_a_draw_from_one_token_is_the_greedy_choice(batch: ContinuousBatch) -> None:
    greedy = texts(batch, {0: GREEDY, 1: GREEDY})
    top_k = Sampling(temperature=1.0, top_k=1)
    assert texts(batch, {0: top_k, 1: GREEDY}) == greedy


def test_logits_are_those_that_the_tokens_were_chosen_from(batch: ContinuousBatch) -> None:
    def are_the_best(rows: Sequence[int], tokens: Sequence[int]) -> None:
        logits = batch.logits_BV[list(rows)].float()
        chosen = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])[:, 0]
        assert torch.equal(chosen, logits.amax(dim=1))

    for row in (0, 2):
        batch.begin_prefill(PROMPTS[row])
        while not batch.prefill_chunk():
            pass
        are_the_best([row], [batch.place(row)])
    for _ in range(5):
        are_the_best([0, 2], batch.advance([0, 2]))


def test_another_thread_may_own_the_batch(batch: ContinuousBatch) -> None:
    """A server builds the batch in its main thread and decodes in another."""
    samplings = {0: GREEDY, 1: SAMPLED}
    here = texts(batch, samplings)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(texts, batch, samplings).result() == here

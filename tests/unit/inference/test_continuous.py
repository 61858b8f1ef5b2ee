"""Continuous batching gives each prompt what it gets alone."""

import copy
from collections.abc import Sequence

import pytest
import torch

from flashslm.inference.continuous import ContinuousBatch
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.int8_model import round_to_int8
from flashslm.inference.prefill import PREFILL_CHUNK
from flashslm.inference.sampling import GREEDY, Sampling
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from tests.unit.training.tiny import SIZES

LENGTHS = (3, 17, 1, 9, 9, 5, 30)
NEW_TOKENS = 12


@pytest.fixture(scope="module", params=["DFMFAF", "GFLFWF"])
def model(request: pytest.FixtureRequest) -> HybridLM:
    built = HybridLM.build(build_architecture(request.param, 32, SIZES, 61), seed=5).eval()
    with torch.no_grad():
        built.embedding.weight *= 20
        for name, parameter in built.named_parameters():
            if name.endswith("_proj.weight"):
                parameter *= 10  # else it only ever repeats its last token
    return built.double()


@pytest.fixture
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    return [torch.randint(61, (length,), generator=generator).tolist() for length in LENGTHS]


def alone(model: HybridLM, prompt: Sequence[int]) -> list[int]:
    tokens: list[int] = DecodeEngine(model, 1, 64).generate(torch.tensor([prompt]), NEW_TOKENS)[0].tolist()
    return tokens


@pytest.mark.parametrize("batch_size", [1, 3, 7, 9])
def test_each_prompt_gets_what_it_gets_alone(
    model: HybridLM, prompts: list[list[int]], batch_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More prompts than rows and fewer, prompts longer than a chunk, texts that end early or with their first token."""
    monkeypatch.setitem(PREFILL_CHUNK, "cpu", 7)
    expected = [alone(model, prompt) for prompt in prompts]
    ends = {expected[0][0], expected[1][4], expected[4][7]}
    batch = ContinuousBatch(model, batch_size, 30 + NEW_TOKENS)
    assert batch.generate(prompts, NEW_TOKENS, lambda _: False) == expected
    cut = [next((text[: i + 1] for i, token in enumerate(text) if token in ends), text) for text in expected]
    assert len(cut[0]) == 1 and len({len(text) for text in cut}) > 2
    assert batch.generate(prompts, NEW_TOKENS, lambda text: text[-1] in ends) == cut


def test_a_row_takes_the_next_prompt_as_soon_as_its_text_ends(
    model: HybridLM, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two rows, texts of 12, 2, 2, 2, 2, 2 and 2 tokens: 11 steps, where batches of two would take 11 + 1 + 1 + 1."""
    batch, steps = ContinuousBatch(model, 2, 64), []
    advance = batch.decode_graph.advance
    monkeypatch.setattr(batch.decode_graph, "advance", lambda: steps.append(1) or advance())
    longest = alone(model, prompts[6])
    texts = batch.generate(prompts, NEW_TOKENS, lambda text: len(text) == 2 and list(text) != longest[:2])
    assert sorted(map(len, texts)) == [2] * 6 + [12]
    assert len(steps) == 11


def test_sampling_depends_on_the_seed_alone(model: HybridLM, prompts: list[list[int]]) -> None:
    def sample(seed: int) -> list[list[int]]:
        batch = ContinuousBatch(model, 3, 64, Sampling(temperature=5.0, seed=seed))
        return batch.generate(prompts, NEW_TOKENS, lambda _: False)

    assert sample(1) == sample(1) != sample(2)


@pytest.mark.parametrize(("length", "new_tokens"), [(0, 5), (60, 5), (5, 0)])
def test_what_has_no_place_is_refused(model: HybridLM, length: int, new_tokens: int) -> None:
    with pytest.raises(ValueError, match="together at most 64"):
        ContinuousBatch(model, 2, 64).generate([[1] * length, [1, 2]], new_tokens, lambda _: False)


def start(batch: ContinuousBatch, row: int, prompt: Sequence[int], sampling: Sampling = GREEDY) -> int:
    batch.begin_prefill(prompt)
    while not batch.prefill_chunk():
        pass
    return batch.place(row, sampling)


@pytest.mark.parametrize("beside", [GREEDY, Sampling(temperature=9.0, seed=4)], ids=["greedy", "sampled"])
def test_a_rows_draws_do_not_depend_on_the_rows_beside_it(
    model: HybridLM, prompts: list[list[int]], beside: Sampling
) -> None:
    def sample(others: Sequence[int], seed: int) -> list[int]:
        batch, rows = ContinuousBatch(model, 3, 64), sorted([1, *others])
        for other in others:
            start(batch, other, prompts[other], beside)
        first = start(batch, 1, prompts[1], Sampling(temperature=5.0, seed=seed))
        return [first, *(batch.advance(rows)[rows.index(1)] for _ in range(NEW_TOKENS))]

    assert sample([], 3) == sample([0, 2], 3) == sample([0], 3) != sample([], 4)


def test_a_free_row_outlasts_any_number_of_steps(model: HybridLM, prompts: list[list[int]]) -> None:
    """Texts one after another in one row of two: more steps than a row has places, and the other row still serves."""
    batch = ContinuousBatch(model, 2, 20)

    def text(row: int, prompt: Sequence[int]) -> list[int]:
        tokens = [start(batch, row, prompt), *(batch.advance([row])[0] for _ in range(NEW_TOKENS - 1))]
        batch.free(row)
        return tokens

    for _ in range(4):
        assert text(0, prompts[0]) == alone(model, prompts[0])
    assert text(1, prompts[2]) == alone(model, prompts[2])


def test_logits_are_those_that_the_tokens_were_chosen_from(model: HybridLM, prompts: list[list[int]]) -> None:
    batch = ContinuousBatch(model, 2, 64)
    for row in (0, 1):
        assert start(batch, row, prompts[row]) == batch.logits_BV[row].argmax()
    for _ in range(3):
        assert batch.advance([0, 1]) == batch.logits_BV.argmax(-1).tolist()


def test_weights_of_8_bits_are_those_of_the_engine(model: HybridLM, prompts: list[list[int]]) -> None:
    rounded = round_to_int8(copy.deepcopy(model))
    expected = [alone(rounded, prompt) for prompt in prompts]
    batch = ContinuousBatch(copy.deepcopy(model), 3, 64, weights="int8")
    assert batch.generate(prompts, NEW_TOKENS, lambda _: False) == expected
    assert expected != [alone(model, prompt) for prompt in prompts]

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from flashslm.inference.sampling import GREEDY, LEAST_TEMPERATURE, RowSampler, Sampler, Sampling

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.1, 0.2])


def frequencies(sampling: Sampling, probabilities: Tensor = PROBABILITIES, count: int = 40_000) -> Tensor:
    tokens = Sampler(sampling, "cpu")(probabilities.log().expand(count, -1))
    return torch.bincount(tokens, minlength=len(probabilities)) / count


def test_temperature_zero_is_greedy():
    logits = torch.randn(30, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampler(Sampling(top_k=3, top_p=0.5), "cpu")(logits), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e-6, 1e-39, 5e-324])
def test_a_temperature_that_logits_overflow_at_is_greedy(temperature: float) -> None:
    sampling = Sampling(temperature=temperature, top_p=0.9)
    logits_BV = torch.randn(30, 11, generator=torch.Generator().manual_seed(0)) * 40
    assert torch.equal(Sampler(sampling, "cpu")(logits_BV), logits_BV.argmax(-1))
    sampler, tokens_B = RowSampler(30), logits_BV.argmax(-1)
    for row in range(30):
        sampler.begin(row, sampling)
    sampler(logits_BV, tokens_B, range(30))
    assert torch.equal(tokens_B, logits_BV.argmax(-1))


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_the_least_temperature_is_finite(factor: float) -> None:
    logits_BV = torch.randn(30, 11, generator=torch.Generator().manual_seed(0)) * 1000
    chosen = Sampler(Sampling(temperature=LEAST_TEMPERATURE * factor), "cpu")(logits_BV)
    assert torch.equal(chosen, logits_BV.argmax(-1))


CASES = [
    (Sampling(temperature=1.0), [0.05, 0.4, 0.25, 0.1, 0.2]),
    (Sampling(temperature=0.5), [0.0025, 0.16, 0.0625, 0.01, 0.04]),
    (Sampling(temperature=1.0, top_k=2), [0, 0.4, 0.25, 0, 0]),
    (Sampling(temperature=1.0, top_k=99), [0.05, 0.4, 0.25, 0.1, 0.2]),
    (Sampling(temperature=1.0, top_p=0.3), [0, 1, 0, 0, 0]),
    (Sampling(temperature=1.0, top_p=0.6), [0, 0.4, 0.25, 0, 0]),
    (Sampling(temperature=1.0, top_p=0.7), [0, 0.4, 0.25, 0, 0.2]),
    # 0.4 and 0.25 of the three kept make 0.76 of their sum: the third is cut.
    (Sampling(temperature=1.0, top_k=3, top_p=0.7), [0, 0.4, 0.25, 0, 0]),
]


@pytest.mark.parametrize("sampling, expected", CASES)
def test_frequencies(sampling, expected):
    expected = torch.tensor(expected) / sum(expected)
    actual = frequencies(sampling)
    assert (actual[expected == 0] == 0).all()
    # Four standard deviations.
    assert ((actual - expected).abs() <= 4 * (expected * (1 - expected) / 40_000).sqrt()).all()


def test_top_k_keeps_exactly_k_of_equals():
    assert (frequencies(Sampling(temperature=1.0, top_k=3), torch.full((8,), 1 / 8)) > 0).sum() == 3


def test_draws_depend_on_the_seed_alone():
    def draw(seed: int) -> Tensor:
        torch.manual_seed(torch.randint(1000, ()).item())
        return Sampler(Sampling(temperature=1.0, seed=seed), "cpu")(PROBABILITIES.log().expand(50, -1))

    assert torch.equal(draw(3), draw(3))
    assert not torch.equal(draw(3), draw(4))


@pytest.mark.parametrize(
    "given", [{"temperature": float("nan")}, {"temperature": float("inf")}, {"seed": 2**64}, {"seed": -(2**63) - 1}]
)
def test_numbers_that_cannot_be_taken_are_refused(given: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(given))} is "):
        Sampling(**given)  # type: ignore[arg-type]


def test_all_problems_in_one_error():
    with pytest.raises(ValueError, match=r"temperature is -1: .*; top_k is -2: .*; top_p is 0: "):
        Sampling(temperature=-1, top_k=-2, top_p=0)


@pytest.mark.parametrize("sampling, expected", CASES)
def test_frequencies_of_rows(sampling: Sampling, expected: list[float]) -> None:
    """Each row with a seed of its own, every second one greedy."""
    count = 8_000
    sampler, tokens_B = RowSampler(count), torch.full((count,), 3)
    for row in range(count):
        sampler.begin(row, replace(sampling, seed=row) if row % 2 else GREEDY)
    sampler(PROBABILITIES.log().expand(count, -1), tokens_B, range(count))
    assert (tokens_B[::2] == 3).all()
    expected_V = torch.tensor(expected) / sum(expected)
    actual_V = torch.bincount(tokens_B[1::2], minlength=5) / (count // 2)
    assert (actual_V[expected_V == 0] == 0).all()
    assert ((actual_V - expected_V).abs() <= 4 * (expected_V * (1 - expected_V) / (count // 2)).sqrt()).all()


def test_rows_keep_exactly_k_of_equals_and_settings_of_their_own() -> None:
    sampler, found = RowSampler(2), [set(), set()]
    sampler.begin(0, Sampling(temperature=1.0, top_k=3))
    sampler.begin(1, Sampling(temperature=1.0, top_p=0.6))
    for _ in range(200):
        tokens_B = torch.zeros(2, dtype=torch.int64)
        sampler(torch.zeros(2, 8), tokens_B, [0, 1])
        for row in (0, 1):
            found[row].add(int(tokens_B[row]))
    assert (len(found[0]), len(found[1])) == (3, 5)


def test_a_row_takes_any_whole_number() -> None:
    """More tokens to keep than a float can count, and seeds that differ in their sign."""
    scores_BV = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
    sampler, tokens_B = RowSampler(2), torch.zeros(2, dtype=torch.int64)
    sampler.begin(0, Sampling(temperature=1.0, top_k=10**400, seed=5))
    sampler.begin(1, Sampling(temperature=1.0, seed=-5))
    drawn = []
    for _ in range(20):
        sampler(scores_BV[:1].expand(2, -1), tokens_B, range(2))
        drawn.append(tokens_B.tolist())
    first, second = zip(*drawn, strict=True)
    assert first != second and len(set(first)) > 5

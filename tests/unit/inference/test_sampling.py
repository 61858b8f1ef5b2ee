import pytest
import torch
from torch import Tensor

from flashslm.inference.sampling import Sampler, Sampling

PROBABILITIES = torch.tensor([0.05, 0.4, 0.25, 0.1, 0.2])


def frequencies(sampling: Sampling, probabilities: Tensor = PROBABILITIES, count: int = 40_000) -> Tensor:
    tokens = Sampler(sampling, "cpu")(probabilities.log().expand(count, -1))
    return torch.bincount(tokens, minlength=len(probabilities)) / count


def test_temperature_zero_is_greedy():
    logits = torch.randn(30, 11, generator=torch.Generator().manual_seed(0))
    assert torch.equal(Sampler(Sampling(top_k=3, top_p=0.5), "cpu")(logits), logits.argmax(-1))


@pytest.mark.parametrize(
    "sampling, expected",
    [
        (Sampling(temperature=1.0), [0.05, 0.4, 0.25, 0.1, 0.2]),
        (Sampling(temperature=0.5), [0.0025, 0.16, 0.0625, 0.01, 0.04]),
        (Sampling(temperature=1.0, top_k=2), [0, 0.4, 0.25, 0, 0]),
        (Sampling(temperature=1.0, top_k=99), [0.05, 0.4, 0.25, 0.1, 0.2]),
        (Sampling(temperature=1.0, top_p=0.3), [0, 1, 0, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.6), [0, 0.4, 0.25, 0, 0]),
        (Sampling(temperature=1.0, top_p=0.7), [0, 0.4, 0.25, 0, 0.2]),
        # 0.4 and 0.25 of the three kept make 0.76 of their sum: the third is cut.
        (Sampling(temperature=1.0, top_k=3, top_p=0.7), [0, 0.4, 0.25, 0, 0]),
    ],
)
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


def test_all_problems_in_one_error():
    with pytest.raises(ValueError, match=r"temperature is -1: .*; top_k is -2: .*; top_p is 0: "):
        Sampling(temperature=-1, top_k=-2, top_p=0)

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from flashslm.data.loader import TokenLoader
from flashslm.evaluation import needle
from flashslm.evaluation.items import numbers
from flashslm.evaluation.needle import KEY_TOKENS, VALUE_TOKENS, evaluate_needle, plant_needles, score_values
from flashslm.models.hybrid import HybridLM

SHOWN = KEY_TOKENS + VALUE_TOKENS


@pytest.fixture
def loader(dataset: Path) -> TokenLoader:
    return TokenLoader(dataset, "validation", 32, 4, seed=0)


class Seen(NamedTuple):
    """A Recaller's state."""

    tokens_BT: Tensor


class Recaller(torch.nn.Module):
    """Predicts what followed the latest earlier occurrence of the last three tokens, else token 1."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 1)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        hidden_BTV = torch.zeros(*tokens_BT.shape, 300)
        for row, tokens in enumerate(tokens_BT.tolist()):
            followers: dict[tuple[int, ...], int] = {}
            for place in range(len(tokens)):
                last = tuple(tokens[max(0, place - 2) : place + 1])
                hidden_BTV[row, place, followers.get(last, 1)] = 10.0
                if place + 1 < len(tokens):
                    followers[last] = tokens[place + 1]
        return hidden_BTV

    def prefix_states(self) -> list[Any]:
        return [Seen(torch.zeros(1, 0, dtype=torch.int64))]

    def extend(self, tokens_BT: Tensor, states: list[Any], start: int) -> tuple[Tensor, list[Any]]:
        whole_BT = torch.cat([states[0].tokens_BT, tokens_BT], dim=1)
        assert whole_BT.shape[1] == start + tokens_BT.shape[1]
        return self(whole_BT)[:, start:], [Seen(whole_BT)]

    def logits(self, hidden: Tensor) -> Tensor:
        return hidden


class GreedyEngine:
    """Decodes with full forward passes."""

    def __init__(self, model: Any, batch_size: int, max_context: int):
        self.model, self.batch_size, self.max_context = model, batch_size, max_context

    def generate(self, tokens_BT: Tensor, max_new_tokens: int) -> Tensor:
        assert len(tokens_BT) == self.batch_size
        for _ in range(max_new_tokens):
            best_B = self.model.logits(self.model(tokens_BT)[:, -1]).argmax(-1)
            tokens_BT = torch.cat([tokens_BT, best_B[:, None]], dim=1)
        assert tokens_BT.shape[1] <= self.max_context
        return tokens_BT[:, -max_new_tokens:]


def needle_numbers(*arguments: Any, **settings: Any) -> dict[str, Any]:
    asked, items = evaluate_needle(*arguments, **settings)
    return asked | numbers(items)


def test_needles_stand_once_at_spread_depths_in_real_text(loader: TokenLoader) -> None:
    samples, length = 20, 200
    planted = plant_needles(loader, length, samples, seed=0)
    stream = loader.tokens(0, 10**9)
    text = stream[stream != 0].tolist()
    windows = {tuple(text[i : i + 20]) for i in range(len(text))}
    depths = []
    for prompt, value in zip(planted.prompts_ST.tolist(), planted.values_SV.tolist(), strict=True):
        assert len(prompt) + VALUE_TOKENS == length
        assert prompt[0] == 0 and 0 not in prompt[1:]
        key = prompt[-KEY_TOKENS:]
        places = [i for i in range(len(prompt) - SHOWN) if prompt[i : i + SHOWN] == key + value]
        assert len(places) == 1
        depths.append((places[0] - 1) / (len(prompt) - 1 - SHOWN - KEY_TOKENS))
        hay = prompt[1 : places[0]] + prompt[places[0] + SHOWN : -KEY_TOKENS]
        assert all(tuple(hay[i : i + 20]) in windows for i in range(len(hay) - 20))
    assert all(abs(depth - (i + 0.5) / samples) < 0.04 for i, depth in enumerate(depths))


def test_the_seed_alone_decides(loader: TokenLoader) -> None:
    first, again, other = (plant_needles(loader, 100, 6, seed) for seed in (1, 1, 2))
    assert torch.equal(first.prompts_ST, again.prompts_ST) and torch.equal(first.others_SRV, again.others_SRV)
    assert not torch.equal(first.values_SV, other.values_SV)


def test_a_model_that_recalls_is_perfect(loader: TokenLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(needle, "DecodeEngine", GreedyEngine)
    result = needle_numbers(Recaller(), loader, 120, samples=10, seed=0, batch_size=4)
    assert (result["accuracy"], result["ranked_first"]) == (1.0, 1.0)
    assert 9 < result["margin_nats"] <= 10  # the logit gap, less the odd token two values share
    assert (result["length"], result["samples"], result["chance"]) == (120, 10, 1 / 16)
    assert result["ranked_first_by_depth"] == [1.0] * 8


def test_shares_by_depth_are_in_the_order_of_the_samples() -> None:
    assert needle.by_depth(torch.tensor([True, False, True])) == [1.0, 0.0, 1.0]
    assert needle.by_depth(torch.arange(32) < 6) == [1.0, 0.5, *[0.0] * 6]


def test_a_model_without_recall_is_at_chance(model: HybridLM, loader: TokenLoader) -> None:
    with torch.no_grad():
        uniform = HybridLM.build(model.architecture, seed=0)
        uniform.embedding.weight *= 1e-3
    result = needle_numbers(uniform, loader, 60, samples=160, seed=0, batch_size=32)
    assert result["accuracy"] == 0.0
    assert abs(result["ranked_first"] - result["chance"]) < 4 * (result["chance"] / 160) ** 0.5
    assert abs(result["margin_nats"]) < 1e-3
    stream = loader.tokens(0, 10**9)
    assert result["chance_accuracy"] == (len(stream.unique()) - 1) ** -VALUE_TOKENS  # all but the document end


def test_scores_are_those_of_separate_forward_passes(model: HybridLM, loader: TokenLoader) -> None:
    planted = plant_needles(loader, 60, 3, seed=0)
    true_S, others_SR = score_values(model, planted.prompts_ST, planted.values_SV, planted.others_SRV)
    with torch.no_grad():
        for s in range(3):
            tokens = planted.prompts_ST[s].tolist()
            true, others = 0.0, torch.zeros(others_SR.shape[1])
            for v, token in enumerate(planted.values_SV[s].tolist()):
                log_probs = model.logits(model(torch.tensor([tokens]))[0, -1]).log_softmax(-1)
                true += float(log_probs[token])
                others += log_probs[planted.others_SRV[s, :, v]]
                tokens.append(token)
            assert abs(true - float(true_S[s])) < 1e-3
            assert torch.allclose(others, others_SR[s], atol=1e-3)


def test_accuracy_is_that_of_greedy_decoding(
    model: HybridLM, loader: TokenLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    planted = plant_needles(loader, 60, 6, seed=0)
    answers = GreedyEngine(model, 6, 60).generate(planted.prompts_ST, VALUE_TOKENS).clone()
    answers[:2, -1] += 1  # spoil two of six
    rigged = needle.Needles(planted.prompts_ST, answers, planted.others_SRV, planted.num_candidates)
    monkeypatch.setattr(needle, "plant_needles", lambda *_: rigged)
    _, items = evaluate_needle(model, loader, 60, 6, seed=0, batch_size=4)
    assert items["accuracy"].totals == (0.0, 0.0, 1.0, 1.0, 1.0, 1.0)
    again = evaluate_needle(model, loader, 60, 6, seed=0, batch_size=4)[1]["accuracy"]
    assert items["accuracy"].items_sha256 == again.items_sha256


@pytest.mark.parametrize("length", [17, 1_000_000])
def test_lengths_that_do_not_fit_are_refused(loader: TokenLoader, length: int) -> None:
    with pytest.raises(ValueError, match=r"allowed lengths are 18 to \d+; change evaluation.needle_lengths"):
        plant_needles(loader, length, 2, seed=0)
    assert plant_needles(loader, 18, 2, seed=0).prompts_ST.shape == (2, 14)

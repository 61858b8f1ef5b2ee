import math
from pathlib import Path

import pytest
import torch
from torch import Tensor

from flashslm.data.loader import IGNORE_INDEX, TokenLoader
from flashslm.data.shards import ShardWriter
from flashslm.evaluation.perplexity import evaluate_perplexity
from flashslm.models.hybrid import HybridLM


class FixedDistribution(torch.nn.Module):
    """A model whose next-token distribution is always the same."""

    def __init__(self, probabilities: list[float]):
        super().__init__()
        self.embedding = torch.nn.Embedding(len(probabilities), 1)
        self.log_probs = torch.tensor(probabilities, dtype=torch.float64).log()
        self.seen: list[int] = []

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None) -> Tensor:
        assert documents_BT is None
        real = targets_BT[targets_BT != IGNORE_INDEX]
        self.seen += real.tolist()
        return -self.log_probs[real].mean()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The stream 0 1 1 2 0 2 1 0, from texts of 6 and 5 bytes."""
    writer = ShardWriter(tmp_path / "validation", vocab_size=3, end_of_document_id=0, shard_tokens=1024)
    writer.add([1, 1, 2], num_bytes=6)
    writer.add([2, 1], num_bytes=5)
    writer.close()
    return tmp_path


@pytest.mark.parametrize(("sequence_length", "batch_size"), [(7, 1), (2, 1), (3, 2), (2, 3)])
def test_loss_and_bits_per_byte_of_a_known_model(tiny: Path, sequence_length: int, batch_size: int) -> None:
    model = FixedDistribution([1 / 4, 1 / 2, 1 / 4])
    result = evaluate_perplexity(model, TokenLoader(tiny, "validation", sequence_length, batch_size, seed=0))
    # predicted: 1 1 2 0 2 1 0 = three halves (1 bit each) and four quarters (2 bits each): 11 bits on 11 bytes
    assert model.seen == [1, 1, 2, 0, 2, 1, 0]
    assert result["test/tokens"] == 7
    assert math.isclose(result["test/bits_per_byte"], 1.0, rel_tol=1e-6)
    assert math.isclose(result["test/loss_nats"], 11 * math.log(2) / 7, rel_tol=1e-6)
    assert math.isclose(result["test/perplexity"], 2 ** (11 / 7), rel_tol=1e-6)


def test_the_perplexity_of_a_model_that_diverged_is_a_number(tiny: Path) -> None:
    model = FixedDistribution([1 / 4, 1 / 2, 1 / 4])
    model.log_probs *= 1e4
    result = evaluate_perplexity(model, TokenLoader(tiny, "validation", 7, 1, seed=0))
    assert result["test/loss_nats"] > 5000 and 1e300 < result["test/perplexity"] < math.inf


def test_max_tokens_evaluates_just_that_many(tiny: Path) -> None:
    model = FixedDistribution([1 / 4, 1 / 2, 1 / 4])
    result = evaluate_perplexity(model, TokenLoader(tiny, "validation", 3, 2, seed=0), max_tokens=4)
    assert model.seen == [1, 1, 2, 0]
    assert result["test/tokens"] == 4
    assert math.isclose(result["test/bits_per_byte"], (1 + 1 + 2 + 2) / 6, rel_tol=1e-6)  # the first document's 6 bytes
    assert evaluate_perplexity(model, TokenLoader(tiny, "validation", 3, 2, seed=0), 10**9)["test/tokens"] == 7


@pytest.mark.parametrize("isolate", [False, True])
def test_hybrid_model_agrees_with_token_by_token_scores(model: HybridLM, dataset: Path, isolate: bool) -> None:
    loader = TokenLoader(dataset, "validation", 24, 4, seed=0)
    result = evaluate_perplexity(model, loader, max_tokens=150, isolate_documents=isolate)
    stream = loader.tokens(0, 151)
    nats = []
    with torch.no_grad():
        for target in range(1, 151):
            start = (target - 1) // 24 * 24
            if isolate:
                ends = (stream[:target] == loader.end_of_document_id).nonzero()
                start = max(start, int(ends.max()))
            log_probs = model.logits(model(stream[None, start:target])[0, -1]).double().log_softmax(-1)
            nats.append(-float(log_probs[stream[target]]))
    assert math.isclose(result["test/loss_nats"], sum(nats) / 150, rel_tol=1e-5)

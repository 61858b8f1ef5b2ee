import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flashslm.data.shards import ShardWriter, SplitReader
from flashslm.data.tokenizer import load_tokenizer
from flashslm.evaluation.items import numbers
from flashslm.evaluation.perplexity import (
    Reading,
    document_windows,
    evaluate_perplexity,
    sample_documents,
)
from flashslm.models.hybrid import HybridLM

ALONE = Reading(context=7, stride=7, batch_size=3)


class FixedDistribution(torch.nn.Module):
    """A model whose next-token distribution is always the same: its hidden state is one, its head the logarithms."""

    def __init__(self, probabilities: list[float]):
        super().__init__()
        log_probs = torch.tensor(probabilities, dtype=torch.float64).log()
        self.embedding = torch.nn.Embedding.from_pretrained(log_probs[:, None])

    def prefix_states(self) -> list[Any]:
        return []

    def extend(self, tokens_BT: Tensor, states: list[Any], start: int) -> tuple[Tensor, list[Any]]:
        return torch.ones(*tokens_BT.shape, 1, dtype=torch.float64), states


@pytest.fixture
def tiny(tmp_path: Path) -> SplitReader:
    """The stream 0 1 1 2 0 2 1 0, from texts of 6 and 5 bytes."""
    writer = ShardWriter(tmp_path / "test", vocab_size=3, end_of_document_id=0, shard_tokens=1024)
    writer.add([1, 1, 2], num_bytes=6)
    writer.add([2, 1], num_bytes=5)
    writer.close()
    return SplitReader(tmp_path, "test")


def evaluated(model: Any, reader: SplitReader, reading: Reading = ALONE, max_tokens: int = 0) -> dict[str, float]:
    facts, items = evaluate_perplexity(model, sample_documents(reader, max_tokens, seed=0), reading)
    return facts | numbers(items)


@pytest.mark.parametrize(("context", "stride", "batch_size"), [(7, 7, 1), (2, 1, 1), (3, 2, 2), (2, 2, 3), (1, 1, 8)])
def test_loss_and_bits_per_byte_of_a_known_model(tiny: SplitReader, context: int, stride: int, batch_size: int) -> None:
    result = evaluated(FixedDistribution([1 / 4, 1 / 2, 1 / 4]), tiny, Reading(context, stride, batch_size))
    # predicted: 1 1 2 0 | 2 1 0 = three halves (1 bit each) and four quarters (2 bits each): 11 bits on 11 bytes
    assert (result["tokens"], result["documents"]) == (7, 2)
    assert (result["context"], result["stride"]) == (context, stride)
    assert math.isclose(result["bits_per_byte"], 1.0, rel_tol=1e-6)
    assert math.isclose(result["loss_nats"], 11 * math.log(2) / 7, rel_tol=1e-6)
    assert math.isclose(result["perplexity"], 2 ** (11 / 7), rel_tol=1e-6)
    # documents of 6 bits on 4 tokens and 5 bits on 3: residuals -+ 2/7 bits from 11/7 per token
    error = math.sqrt(2 * 2 * (2 / 7) ** 2) / 7 * math.log(2)
    assert math.isclose(result["loss_nats_stderr"], error, rel_tol=1e-5)
    assert math.isclose(result["perplexity_stderr"], error * result["perplexity"], rel_tol=1e-5)


@pytest.mark.parametrize("reading", [Reading(4, 2, 1), Reading(7, 2, 1), Reading(4, 4, 1)])
def test_readings_with_another_context_or_stride_are_not_compared(tiny: SplitReader, reading: Reading) -> None:
    model, documents = FixedDistribution([1 / 4, 1 / 2, 1 / 4]), sample_documents(tiny, 0, seed=0)
    _, found = evaluate_perplexity(model, documents, reading)
    for other in (Reading(4, 2, 8), Reading(7, 2, 8), Reading(4, 4, 8)):
        _, beside = evaluate_perplexity(model, documents, other)
        is_same = (other.context, other.stride) == (reading.context, reading.stride)
        for name in ("loss_nats", "perplexity", "bits_per_byte"):
            assert (found[name].items_sha256 == beside[name].items_sha256) == is_same


def test_the_perplexity_of_a_model_that_diverged_is_a_number(tiny: SplitReader) -> None:
    model = FixedDistribution([1 / 4, 1 / 2, 1 / 4])
    model.embedding.weight.copy_(torch.tensor([[0.0], [-1e4], [-2e4]]))
    result = evaluated(model, tiny)
    assert result["loss_nats"] > 5000 and 1e300 < result["perplexity"] < math.inf


@pytest.mark.parametrize("context", [1, 4, 5, 100])
@pytest.mark.parametrize("stride", [1, 3, 4])
def test_windows_score_each_token_once_with_the_context_that_is_stated(context: int, stride: int) -> None:
    if stride > context:
        with pytest.raises(ValueError, match=f"stride {stride} is not from 1 to the context of {context} tokens"):
            Reading(context, stride, 1)
        return
    for targets in (1, context, context + 1, 23):
        seen = []
        for window in document_windows(0, targets, Reading(context, stride, 1)):
            assert window.end - window.begin <= context
            for target in range(window.scored + 1, window.end + 1):
                seen.append(target)
                assert target - window.begin >= min(target, context - stride + 1)
        assert seen == list(range(1, targets + 1))


def test_a_limit_takes_a_seeded_sample_of_just_that_many_tokens(dataset: Path) -> None:
    reader = SplitReader(dataset, "test")
    tokens, sizes = reader.document_sizes()
    sample, again, other = (sample_documents(reader, 200, seed) for seed in (0, 0, 1))
    assert sample.targets_N.sum() == 200 and 1 < len(sample.indices_N) < len(tokens)
    assert sample.items_sha256 == again.items_sha256 != other.items_sha256
    assert sorted(sample.indices_N) != list(range(len(sample.indices_N))), "not the beginning of the stream"
    last = sample.indices_N[-1]
    assert sample.bytes_N[-1] == sizes[last] * sample.targets_N[-1] / tokens[last]
    assert np.array_equal(sample.bytes_N[:-1], sizes[sample.indices_N[:-1]])
    whole = sample_documents(reader, 10**9, seed=0)
    assert whole.targets_N.sum() == reader.index.tokens - 1 and whole.bytes_N.sum() == reader.index.bytes


@torch.no_grad()
def token_by_token(model: HybridLM, ids: list[int], context: int, stride: int) -> float:
    """Nats of all but the first token, one forward pass for each, by the definition of a sliding window."""
    nats, end = 0.0, min(context, len(ids) - 1)
    for target in range(1, len(ids)):
        if target > end:
            end = min(end + stride, len(ids) - 1)
        begin = max(0, end - context)
        log_probs = model.logits(model(torch.tensor([ids[begin:target]]))[0, -1]).double().log_softmax(-1)
        nats -= float(log_probs[ids[target]])
    return nats


@pytest.mark.parametrize(("context", "stride"), [(64, 64), (24, 24), (24, 9)])
def test_documents_agree_with_an_independent_computation(
    model: HybridLM, dataset: Path, context: int, stride: int
) -> None:
    reader = SplitReader(dataset, "test")
    documents = sample_documents(reader, 300, seed=0)
    result = evaluated(model, reader, Reading(context, stride, 4), max_tokens=300)
    stream = reader.read(0, reader.index.tokens).tolist()
    starts = [place for place, token in enumerate(stream) if token == 0]
    nats = 0.0
    for document, targets in zip(documents.indices_N, documents.targets_N, strict=True):
        nats += token_by_token(model, stream[starts[document] : starts[document] + targets + 1], context, stride)
    assert math.isclose(result["loss_nats"], nats / 300, rel_tol=1e-5)
    assert math.isclose(result["bits_per_byte"], nats / math.log(2) / documents.bytes_N.sum(), rel_tol=1e-5)


PAGES = [" = River = \n\n the dogs sleeps @-@ quietly , often . \n", 'seven " blue " stone \'s @,@ 000 \n' * 6]


def test_the_harness_s_wikitext_sums_are_those_of_an_independent_computation(model: HybridLM, dataset: Path) -> None:
    from lm_eval.tasks.wikitext.preprocess_wikitext import process_results, wikitext_detokenizer

    from flashslm.evaluation.lm_eval_adapter import HybridLMAdapter

    tokenizer = load_tokenizer(dataset / "tokenizer")
    adapter = HybridLMAdapter(model, tokenizer, batch_size=1)
    texts = [wikitext_detokenizer({"page": page}) for page in PAGES]
    rolling = adapter.loglikelihood_rolling([SimpleNamespace(args=(text,)) for text in texts])
    rows = [process_results({"page": p}, [nats]) for p, nats in zip(PAGES, rolling, strict=True)]
    ids = [[0, *tokenizer(text, add_special_tokens=False)["input_ids"]] for text in texts]
    assert max(map(len, ids)) > 65, "a page of several windows is among them"
    nats = sum(token_by_token(model, page, 64, 64) for page in ids)
    sizes = {
        "word_perplexity": sum(len(re.split(r"\s+", page)) for page in PAGES),
        "byte_perplexity": sum(len(page.encode()) for page in PAGES),
    }
    for metric, size in sizes.items():
        found, units = (math.fsum(column) for column in zip(*(row[metric] for row in rows), strict=True))
        assert units == size and math.exp(-found / units) == pytest.approx(math.exp(nats / size), rel=1e-4)

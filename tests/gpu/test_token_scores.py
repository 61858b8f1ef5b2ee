"""The fused form of a head's log-probabilities on a GPU, and evaluation by it."""

import pytest
import torch

from flashslm.evaluation.perplexity import Reading, document_nats
from flashslm.ops.dispatch import token_scores
from flashslm.ops.token_scores import HeadInputs, token_scores_chunked
from tests.gpu.test_evaluation import MEAN_TOLERANCE, pair_of_models
from tests.gpu.test_model import VOCABULARY
from tests.unit.ops.test_token_scores import SHAPES, check, inputs, ties

pytestmark = pytest.mark.gpu


def on_gpu(inputs: HeadInputs) -> HeadInputs:
    return HeadInputs(*(x.cuda() for x in inputs))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("shape", [*SHAPES, (1000, 40_001, 200)])
def test_the_fused_form_is_naive(shape, dtype):
    from flashslm.ops.fused.token_scores import token_scores_triton

    check(token_scores_triton, on_gpu(inputs(shape, dtype)), 1e-5, 1e-3)


def test_of_equal_logits_the_first_is_the_most_likely():
    from flashslm.ops.fused.token_scores import token_scores_triton

    assert token_scores_triton(on_gpu(ties())).is_likeliest_N.tolist() == [True, False, False, False]


def test_no_logits_are_written():
    """Those of 8,192 tokens and 65,536 entries would be 1 GB in bf16."""
    from flashslm.ops.fused.token_scores import token_scores_triton

    given = on_gpu(inputs((8192, 65_536, 64), torch.bfloat16))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    token_scores_triton(given)
    assert torch.cuda.max_memory_allocated() - before < 50e6


def test_perplexity_is_that_of_the_chunked_form():
    _, fast = pair_of_models("DFMFAF")
    texts = [torch.randint(VOCABULARY, (n + 1,)) for n in (700, 33, 1, 257)]
    sizes, reading = [len(text) - 1 for text in texts], Reading(context=256, stride=100, batch_size=3)
    expected = document_nats(fast, lambda number: texts[number], sizes, reading, token_scores_chunked)
    found = document_nats(fast, lambda number: texts[number], sizes, reading)
    assert sum(found) == pytest.approx(sum(expected), rel=MEAN_TOLERANCE / 2)


@pytest.mark.parametrize("dtype, fused", [(torch.bfloat16, True), (torch.float32, False)], ids=["bf16", "fp32"])
def test_half_precision_takes_the_fused_form(dtype, fused, monkeypatch):
    from flashslm.ops.fused import token_scores as module

    calls, form = [], module.token_scores_triton
    monkeypatch.setattr(module, "token_scores_triton", lambda given: calls.append(given) or form(given))
    token_scores(on_gpu(inputs(SHAPES[0], dtype)))
    assert bool(calls) == fused

"""Evaluation in bf16 by fused forms against fp32 by the portable ones, and what 32k tokens of context need.

Tolerances: the mean loss in nats per token within 1 %; a token's log-probability within 5 % of the logits' spread as a
root mean square over continuations, and within 10 % in the worst of them.
"""

import pytest
import torch

from flashslm.config import KernelsConfig
from flashslm.evaluation.loglikelihood import Pair, log_likelihoods
from flashslm.evaluation.perplexity import Reading, document_nats
from flashslm.evaluation.scoring import Scorer, Targets
from flashslm.inference.continuous import ContinuousBatch
from flashslm.models.random_weights import random_model
from flashslm.ops import kernels
from tests.gpu.test_model import PORTABLE, VOCABULARY, build, default_kernels  # noqa: F401

pytestmark = pytest.mark.gpu
MEAN_TOLERANCE, TOKEN_TOLERANCE = 0.01, 0.05
SPREAD = 10.0  # of the embedding: log-probabilities of a random model that differ by several nats


def pair_of_models(operators):
    """One model in fp32, and its bf16 weights; both hold the same values."""
    fast = build(operators, torch.bfloat16).eval()
    with torch.no_grad():
        fast.embedding.weight *= SPREAD
    exact = build(operators).eval()
    exact.load_state_dict({name: tensor.float() for name, tensor in fast.state_dict().items()})
    return exact, fast


@pytest.mark.parametrize("operators", ["DFMFAF", "LFWF"])
def test_fused_bf16_perplexity_is_that_of_fp32(operators):
    exact, fast = pair_of_models(operators)
    sizes = [700, 33, 1, 64, 257]
    texts = [torch.randint(VOCABULARY, (n + 1,)) for n in sizes]
    reading = Reading(context=256, stride=100, batch_size=3)
    kernels.configure(PORTABLE)
    expected = document_nats(exact, lambda number: texts[number], sizes, reading)
    kernels.configure(KernelsConfig())
    actual = document_nats(fast, lambda number: texts[number], sizes, reading)
    assert {"fla", "flash"} <= set(kernels.decisions().values())
    assert sum(actual) == pytest.approx(sum(expected), rel=MEAN_TOLERANCE)


@pytest.mark.parametrize("operators", ["DFMFAF", "LFWF"])
def test_fused_bf16_choices_are_those_of_fp32(operators):
    """Contexts that four endings share; a choice may only differ where fp32 finds the best two within the tolerance."""
    exact, fast = pair_of_models(operators)
    pairs = []
    for length in (1, 16, 33, 64, 65, 130):
        context = torch.randint(VOCABULARY, (length,)).tolist()
        pairs += [Pair(context, torch.randint(VOCABULARY, (n,)).tolist()) for n in (1, 5, 9, 17)]
    kernels.configure(PORTABLE)
    expected = torch.tensor([nats for nats, _ in log_likelihoods(Scorer(exact), pairs, 512)])
    kernels.configure(KernelsConfig())
    actual = torch.tensor([nats for nats, _ in log_likelihoods(Scorer(fast), pairs, 512)])
    lengths = torch.tensor([len(continuation) for _, continuation in pairs])
    with torch.inference_mode():
        spread = exact.logits(exact(torch.randint(VOCABULARY, (1, 64), device="cuda"))).std().item()
    errors = (actual - expected).abs() / lengths.sqrt() / spread
    assert errors.square().mean().sqrt() < TOKEN_TOLERANCE
    assert errors.max() < 2 * TOKEN_TOLERANCE
    for row, other in zip(expected.view(-1, 4), actual.view(-1, 4), strict=True):
        lost = row.max() - row[other.argmax()]
        assert lost < 2 * TOKEN_TOLERANCE * spread * 17**0.5


@pytest.mark.parametrize("chunk", [31, 64, 1000])
def test_fused_forms_carry_their_states(chunk):
    """Ragged chunks in bf16 against one pass in bf16."""
    _, fast = pair_of_models("DFMFAF")
    text = torch.randint(VOCABULARY, (1, 1001))
    targets = Targets.of_runs([(0, 0, text[0, 1:].tolist())])
    (whole,), _ = Scorer(fast, 4096).score(text[:, :-1], targets, 1)
    (carried,), _ = Scorer(fast, chunk).score(text[:, :-1], targets, 1)
    assert carried == pytest.approx(whole, rel=MEAN_TOLERANCE / 2)


def test_32k_tokens_never_hold_their_logits():
    """All logits of 32,768 tokens and 65,536 entries would be 8.6 GB in fp32."""
    architecture = build("DFMFAF").architecture
    update = {"vocab_size": 65_536, "max_position_embeddings": 33_000}
    model = random_model(architecture.model_copy(update=update), "cuda", torch.bfloat16).eval()
    text = torch.randint(65_536, (32_769,))
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    (nats,) = document_nats(model, lambda _: text, [32_768], Reading(32_768, 32_768, 1))
    assert nats / 32_768 == pytest.approx(11.1, abs=1.0)
    assert torch.cuda.max_memory_allocated() - before < 4e9


def test_ragged_prompts_get_by_fused_steps_what_fp32_favours():
    """More prompts than rows: a row's convolution rings begin again while the other rows go on."""
    exact, fast = pair_of_models("DFMFAF")
    prompts = [torch.randint(VOCABULARY, (n,)).tolist() for n in (65, 3, 17, 130, 1, 64)]
    batch = ContinuousBatch(fast, 2, 160)
    assert batch.decode_graph.backend == "fused"
    texts = batch.generate(prompts, 20, lambda text: len(text) == 12 and text[0] % 2 == 0)
    clear, same = 0, 0
    for prompt, text in zip(prompts, texts, strict=True):
        with torch.inference_mode():
            kernels.configure(PORTABLE)
            logits = exact.logits(exact(torch.tensor([prompt + text], device="cuda")))[0, len(prompt) - 1 : -1]
            kernels.configure(KernelsConfig())
        best, second = logits.topk(2).values.unbind(-1)
        sure = (best - second > TOKEN_TOLERANCE * logits.std()).cpu()
        clear += int(sure.sum())
        same += int((logits.argmax(-1).cpu() == torch.tensor(text))[sure].sum())
    assert clear == same > 40

"""Prefill in chunks and decoding are the full forward at every position, in fp32, far beyond the window."""

import pytest
import torch
from torch import Tensor

from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import OPERATORS
from flashslm.models.states import WindowState

LENGTH = 300
CHUNKS = (1, 2, 37, 64, 5)  # the window of 23 fits into a chunk, is spread over several, and wraps within one
OPERATOR_STRINGS = (*OPERATORS, "DFMFAFMF", "WFAFWF", "GFLFGF", "LWDMGAF")


@pytest.fixture
def make_fp32_model(make_architecture):
    """A model whose layers each move the logits by far more than the tolerance."""

    def make(operators: str, **changes) -> HybridLM:
        architecture = make_architecture(operators=operators, max_position_embeddings=8192, **changes)
        model = HybridLM.build(architecture, seed=1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 2 and name != "meta_tokens":
                    parameter.mul_(6.0)
        return model

    return make


def started_cache(model: HybridLM, batch: int, length: int) -> Cache:
    cache = Cache.allocate(model.architecture, batch, length)
    cache.reset_from_prefix(model.prefix_states(), model.architecture.num_meta_tokens)
    return cache


@torch.no_grad()
def largest_error(model: HybridLM, tokens_BT: Tensor, chunks: tuple[int, ...]) -> float:
    """Over every position: prefill of the chunks (their last positions are seen), then decoding of the rest."""
    expected_BTV = model.logits(model(tokens_BT))
    cache = started_cache(model, *tokens_BT.shape)
    errors, start = [], 0
    for size in chunks:
        logits_BV = model.prefill(tokens_BT[:, start : start + size], cache)
        start += size
        errors.append(logits_BV - expected_BTV[:, start - 1])
    for t in range(start, tokens_BT.shape[1]):
        errors.append(model.decode_step(tokens_BT[:, t], cache) - expected_BTV[:, t])
    return float(torch.stack(errors).abs().max() / expected_BTV.std())


@pytest.mark.parametrize("meta", [0, 31], ids=["no-meta", "meta"])
@pytest.mark.parametrize("operators", OPERATOR_STRINGS)
def test_decoding_after_chunked_prefill_is_the_full_forward(operators, meta, make_fp32_model):
    sizes = {"head_dim": 12, "qk_norm": True} if operators == "LWDMGAF" else {}
    model = make_fp32_model(operators, num_meta_tokens=meta, window=23, **sizes)
    tokens_BT = torch.randint(50, (2, LENGTH))
    assert largest_error(model, tokens_BT, CHUNKS) < 1e-4


@pytest.mark.parametrize("operators", [o for o in OPERATOR_STRINGS if len(o) == 1 or o == "LWDMGAF"])
def test_decoding_from_the_first_token_is_the_full_forward(operators, make_fp32_model):
    model = make_fp32_model(operators, num_meta_tokens=6, window=23)
    assert largest_error(model, torch.randint(50, (2, LENGTH)), ()) < 1e-4


def test_every_position_of_a_long_text(make_fp32_model):
    model = make_fp32_model("DMAGLW", num_meta_tokens=6, window=512)
    tokens_BT = torch.randint(50, (1, 4096))
    assert largest_error(model, tokens_BT, ()) < 1e-4
    assert largest_error(model, tokens_BT, (511, 513, 1025, 2047)) < 1e-4


def test_a_window_s_cache_holds_no_more_than_its_window(make_fp32_model):
    model = make_fp32_model("WF", window=23)
    cache = started_cache(model, 2, LENGTH)
    model.prefill(torch.randint(50, (2, LENGTH - 1)), cache)
    model.decode_step(torch.tensor([1, 2]), cache)
    ring = cache.layers[0]
    assert isinstance(ring, WindowState) and ring.keys.shape == (2, 23, 2, 8)
    assert cache.state(0, int(cache.lengths_B[0])).keys.shape == (2, 23, 2, 8)


def test_a_token_out_of_every_window_is_forgotten(make_fp32_model):
    """Two layers of a window of 23 reach 2·22 tokens back: what is farther away changes nothing, what is not does."""
    model = make_fp32_model("WFWF", window=23, num_meta_tokens=0)
    tokens_BT = torch.randint(50, (1, 60))
    changed_BT = tokens_BT.clone()
    changed_BT[0, 5] = (changed_BT[0, 5] + 1) % 50
    with torch.no_grad():
        difference_T = (model(tokens_BT) - model(changed_BT)).abs().amax(-1)[0]
    assert difference_T[5 + 44] > 0 and (difference_T[5 + 45 :] == 0).all() and (difference_T[:5] == 0).all()

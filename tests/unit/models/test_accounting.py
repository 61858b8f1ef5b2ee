"""The closed forms of what an architecture costs against the built model."""

from collections import Counter
from collections.abc import Iterable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from flashslm.models.accounting import (
    decode_bytes_per_token,
    forward_flops_per_token,
    kv_bytes_per_sequence,
    kv_bytes_per_token,
    operator_parameters,
    parameters,
    state_bytes,
    training_flops_per_token,
)
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import OPERATORS

LETTERS = pytest.mark.parametrize("operator", OPERATORS)
SIZES = pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_meta_tokens": 0},
        {"num_kv_heads": 4, "qk_norm": True},
        {"hidden_size": 48, "num_heads": 3, "num_kv_heads": 1},
        {"head_dim": 12, "qk_norm": True, "window": 100},
        {"mamba_expand": 3, "mamba_head_dim": 16, "mamba_state": 7, "ffn_size": 100, "vocab_size": 77},
    ],
)


@SIZES
def test_parameters_are_the_model_s(changes, make_architecture):
    architecture = make_architecture(operators=OPERATORS + "WF", **changes)
    with torch.device("meta"):
        model = HybridLM(architecture)
    for layer, operator in zip(model.layers, architecture.operators, strict=True):
        assert _numel(layer.parameters()) == operator_parameters(architecture, operator), operator
    counts = parameters(architecture)
    assert counts["total"] == _numel(model.parameters())
    assert counts["embedding"] == model.embedding.weight.numel()
    assert counts["window_attention"] == 2 * operator_parameters(architecture, "W")
    assert sum(counts.values()) == 2 * counts["total"]


@SIZES
@pytest.mark.parametrize("context", [6, 30])
def test_cache_bytes_are_the_cache_s(context, changes, make_architecture):
    architecture = make_architecture(operators=OPERATORS + "WF", **(changes | {"num_meta_tokens": 6}))
    sizes = Counter()
    for state in Cache.allocate(architecture, 1, context - 6, dtype=torch.bfloat16).layers:
        for name, tensor in state._asdict().items():
            sizes[name] += tensor.nbytes
    assert kv_bytes_per_sequence(architecture, context) == sizes["keys"] + sizes["values"]
    recurrent = sizes.total() - sum(sizes[name] for name in ("keys", "values", "conv"))
    assert state_bytes(architecture) == recurrent + sizes["conv"]
    assert state_bytes(architecture, conv_bytes_per_value=0) == recurrent


def test_only_attention_s_cache_grows(make_architecture):
    architecture = make_architecture(operators="DMAFGLWA", window=100)
    below, beyond = (
        kv_bytes_per_sequence(architecture, c + 1) - kv_bytes_per_sequence(architecture, c) for c in (50, 100)
    )
    assert beyond == kv_bytes_per_token(architecture) == 2 * (2 * 2 * 8 * 2)
    assert below == 3 * (2 * 2 * 8 * 2)


def test_a_decode_step_reads_weights_keys_and_states(make_architecture):
    architecture = make_architecture(operators=OPERATORS)
    model = HybridLM.build(architecture, dtype=torch.float32)
    weights = sum(p.nbytes for name, p in model.named_parameters() if name != "meta_tokens")
    per_sequence = kv_bytes_per_sequence(architecture, 30, 4) + 2 * state_bytes(architecture, 4, 4)
    assert decode_bytes_per_token(architecture, 30, batch=3, bytes_per_value=4) == weights + 3 * per_sequence


# FLOP on a value of the state outside the matrix products that torch counts; those done in place it does not.
UNCOUNTED = {"D": 2, "G": 3, "L": 3, "M": 4}


@LETTERS
@pytest.mark.parametrize("changes", [{}, {"head_dim": 12, "qk_norm": True}])
def test_flops_are_the_products_of_a_decode_step(operator, changes, make_model):
    model = make_model(operators=operator, **changes)
    a = model.architecture
    cache = Cache.allocate(a, 1, 20, dtype=torch.float64)
    state = cache.layers[0]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.decode_step(torch.tensor([3]), cache)
    counted = counter.get_total_flops()
    if operator in UNCOUNTED:
        counted += UNCOUNTED[operator] * (state.memory if operator == "L" else state[1]).numel()
    vectors = {name: p for name, p in model.named_parameters() if p.dim() == 1 or "conv" in name}
    assert forward_flops_per_token(a, context=26) == counted + 2 * _numel(vectors.values())


def test_training_flops_are_three_forward_passes_at_the_mean_reach(make_model):
    model = make_model(operators="AF")
    a = model.architecture
    matrices = sum(p.numel() for p in model.parameters()) - a.num_meta_tokens * a.hidden_size
    reach = round(a.num_meta_tokens + 17 / 2)
    scores = 4 * reach * a.num_heads * a.head_dim
    assert training_flops_per_token(a, 16) == pytest.approx(3 * (2 * matrices + scores))


def _numel(parameters: Iterable[torch.Tensor]) -> int:
    return sum(p.numel() for p in parameters)

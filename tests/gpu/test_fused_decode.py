"""The fused decode step equals the model's own, run in fp32 on the same weights and states."""

import subprocess
import sys

import pytest
import torch

from flashslm.config import ModelConfig
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.fused.step_plan import MOST_VECTORS, AttentionPlan, ProductTile, StepPlan
from flashslm.inference.sampling import Sampling
from flashslm.models.architecture import build_architecture
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.ops.gradient_check import relative_error
from flashslm.ops.kernel_cache import cache_directory
from flashslm.ops.kernels import MissingKernel

pytestmark = pytest.mark.gpu
CONTEXT = 300


def build(operators, width=256, head_dim=64, **sizes):
    config = ModelConfig(head_dim=head_dim, num_meta_tokens=7, **sizes)
    architecture = build_architecture(operators, width, config, vocab_size=1003)
    model = HybridLM.build(architecture, "cuda", torch.bfloat16, seed=1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.uniform_(0.5, 1.5)
    return model


def in_fp32(model):
    exact = HybridLM.build(model.architecture, "cuda", torch.float32)
    exact.load_state_dict({name: tensor.float() for name, tensor in model.state_dict().items()})
    return exact


def filled(architecture, batch, dtype, seed=3):
    """A cache after CONTEXT tokens with the same random content in every dtype."""
    cache = Cache.allocate(architecture, batch, CONTEXT + 40, "cuda", dtype)
    generator = torch.Generator("cuda").manual_seed(seed)
    for tensor in (tensor for state in cache.layers for tensor in state):
        value = torch.randn(tensor.shape, generator=generator, device="cuda")
        tensor.copy_(value.bfloat16())
    cache.lengths_B.fill_(CONTEXT)
    return cache


@pytest.mark.parametrize("batch", [1, 3, 8, 20])
@pytest.mark.parametrize(
    "operators, sizes",
    [
        ("D", {}),
        ("M", {}),
        ("A", {}),
        ("F", {}),
        ("AF", {"qk_norm": True}),
        ("DFMFAF", {}),
        ("DFMFAF", {"width": 384}),
        ("GFLFWF", {}),
        ("DMAF", {"head_dim": 128, "kv_group": 2, "mamba_state": 64, "mamba_head_dim": 32}),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else value,
)
def test_decoder_is_model(operators, sizes, batch):
    from flashslm.inference.fused.decoder import FusedDecoder

    model = build(operators, **sizes)
    exact = in_fp32(model)
    cache, reference = (filled(model.architecture, batch, dtype) for dtype in (torch.bfloat16, torch.float32))
    decoder = FusedDecoder(model, cache)
    decoder.begin()
    decoder.logits_BV.fill_(torch.nan)
    with torch.inference_mode():
        for tokens_B in torch.randint(1003, (6, batch), device="cuda"):
            expected = exact.decode_step(tokens_B, reference)
            actual = decoder.decode_step(tokens_B)
            assert relative_error(actual, expected) < 2e-2
            decoder.choose_greedily(tokens_B)
            assert torch.equal(tokens_B, actual.argmax(-1))
    assert torch.equal(cache.lengths_B, reference.lengths_B)
    for state, expected_state in zip(cache.layers, reference.layers, strict=True):
        for name, actual, expected in zip(state._fields, state, expected_state, strict=True):
            if name != "conv":  # the decoder keeps the convolution's inputs in rings of its own
                assert relative_error(actual, expected) < 2e-2


def plans():
    """Every form of a product, and attention's programs of other sizes and numbers."""
    tiles = (None, ProductTile(16, 64), ProductTile(32, 128, stages=3), ProductTile(64, 64, warps=8))
    attentions = (
        AttentionPlan(programs=396),
        AttentionPlan(programs=396, whole_waves=True),
        AttentionPlan(keys=64, stages=2, programs=528),
        AttentionPlan(keys=64, stages=2, warps=2, programs=24, whole_waves=True),
        AttentionPlan(keys=32, stages=5),
    )
    return (
        *(StepPlan(product) for product in ("vector", "tiled", "matrix")),
        *(StepPlan("tiled", tile=tile) for tile in tiles[1:]),
        *(StepPlan("matrix", attention) for attention in attentions),
        StepPlan("tiled", attentions[1], tiles[1]),
    )


@pytest.mark.parametrize(
    "operators, batch, plan",
    [
        (operators, batch, plan)
        for operators, batch in (("DFMFAF", 3), ("AF", 8), ("DFMFAF", 33))
        for plan in plans()
        if plan.product != "vector" or batch <= MOST_VECTORS
    ],
    ids=str,
)
def test_every_plan_is_the_model(operators, batch, plan):
    from flashslm.inference.fused.decoder import FusedDecoder

    model = build(operators)
    cache, reference = (filled(model.architecture, batch, dtype) for dtype in (torch.bfloat16, torch.float32))
    exact, decoder = in_fp32(model), FusedDecoder(model, cache, plan=plan)
    decoder.begin()
    decoder.logits_BV.fill_(torch.nan)
    with torch.inference_mode():
        for tokens_B in torch.randint(1003, (3, batch), device="cuda"):
            expected = exact.decode_step(tokens_B, reference)
            assert relative_error(decoder.decode_step(tokens_B), expected) < 2e-2
    for state, expected_state in zip(cache.layers, reference.layers, strict=True):
        for name, actual, expected in zip(state._fields, state, expected_state, strict=True):
            assert name == "conv" or relative_error(actual, expected) < 2e-2


@pytest.mark.parametrize("lengths", [[0, 1, 300], [63, 64, 65]])
def test_sequences_of_unequal_lengths(lengths):
    from flashslm.inference.fused.decoder import FusedDecoder

    model = build("AF")
    cache, reference = (filled(model.architecture, 3, dtype) for dtype in (torch.bfloat16, torch.float32))
    for c in (cache, reference):
        c.lengths_B.copy_(torch.tensor(lengths))
    tokens_B = torch.tensor([1, 2, 3], device="cuda")
    decoder = FusedDecoder(model, cache)
    with torch.inference_mode():
        expected = in_fp32(model).decode_step(tokens_B, reference)
        assert relative_error(decoder.decode_step(tokens_B), expected) < 2e-2


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=5)])
def test_engine_in_a_graph_continues_the_prefill(sampling):
    """Greedy tokens are those of a full forward wherever that has a clear favourite; sampling runs inside the graph."""
    model = build("DFMFAF")
    engine = DecodeEngine(model, batch_size=2, max_context=120, sampling=sampling)
    assert engine.backend == "fused" and engine.cuda_graph is not None
    prompts = torch.randint(1003, (2, 65), device="cuda")
    tokens = engine.generate(prompts, 40)
    assert tokens.shape == (2, 40) and tokens.min() >= 0 and tokens.max() < 1003
    if sampling.temperature:
        assert len(tokens.unique()) > 10
        return
    with torch.inference_mode():
        exact = in_fp32(model)
        logits = exact.logits(exact(torch.cat([prompts, tokens], 1)))[:, 64:-1]
    best, second = logits.topk(2).values.unbind(-1)
    clear = best - second > 0.05 * logits.std()
    assert clear.float().mean() > 0.5
    assert torch.equal(logits.argmax(-1)[clear], tokens[clear])


def test_packing_twice_is_packing_once():
    from flashslm.inference.fused.weights import pack_rows

    ffn = build("F").residual_layers[0].operator
    before = [p.clone() for p in ffn.parameters()]
    first = pack_rows(ffn, ("gate_proj", "up_proj"))
    assert pack_rows(ffn, ("gate_proj", "up_proj")).data_ptr() == first.data_ptr() == ffn.gate_proj.weight.data_ptr()
    assert all(torch.equal(a, b) for a, b in zip(before, ffn.parameters(), strict=True))


def test_sizes_without_kernels_are_an_error_that_names_the_other_form():
    from flashslm.inference.fused.decoder import FusedDecoder

    model = build("DM", width=240, head_dim=48, mamba_head_dim=60)
    with pytest.raises(MissingKernel, match=r"head_dim is 48: .*mamba_head_dim is 60: .*or set it to torch"):
        FusedDecoder(model, Cache.allocate(model.architecture, 1, 8, "cuda", torch.bfloat16))


@pytest.mark.parametrize("batch", [1, 3, 8])
@pytest.mark.parametrize(
    "operators, sizes", [("DFMFAF", {}), ("AF", {"width": 384}), ("GFLFWF", {}), ("DF", {"width": 320})]
)
def test_weights_of_8_bits(operators, sizes, batch):
    """The decoder is the model with rounded matrices, in fp32."""
    from flashslm.inference.fused.decoder import FusedDecoder
    from flashslm.inference.int8_model import round_to_int8

    model = round_to_int8(build(operators, **sizes))
    exact = in_fp32(model)
    cache, reference = (filled(model.architecture, batch, dtype) for dtype in (torch.bfloat16, torch.float32))
    decoder = FusedDecoder(model, cache, int8=True)
    decoder.begin()
    with torch.inference_mode():
        for tokens_B in torch.randint(1003, (6, batch), device="cuda"):
            expected = exact.decode_step(tokens_B, reference)
            assert relative_error(decoder.decode_step(tokens_B), expected) < 2e-2


def test_its_kernels_lie_with_all_others():
    """In a process that imports no other kernels, as those that compile a latency table's."""
    source = "import flashslm.inference.fused.decoder\nfrom triton import knobs\nprint(knobs.cache.dir)"
    found = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True).stdout
    assert found.strip() == str(cache_directory() / "triton")

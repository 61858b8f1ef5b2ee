import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flashslm.inference.engine import DecodeEngine
from flashslm.inference.prefill import PREFILL_CHUNK
from flashslm.inference.sampling import Sampling


@pytest.fixture
def prompts_BT():
    return torch.randint(50, (3, 9), generator=torch.Generator().manual_seed(4))


def test_greedy_is_the_argmax_of_the_full_forward(model, prompts_BT):
    tokens = DecodeEngine(model, 3, 40).generate(prompts_BT, 25)
    sequence = torch.cat([prompts_BT, tokens], dim=1)
    expected = model.logits(model(sequence)).argmax(-1)
    assert torch.equal(tokens, expected[:, 8:-1])
    assert len(tokens.unique()) > 5  # a constant continuation would prove little


def test_prefill_in_chunks_changes_nothing(model, prompts_BT, monkeypatch):
    expected = DecodeEngine(model, 3, 20).generate(prompts_BT, 8)
    monkeypatch.setitem(PREFILL_CHUNK, "cpu", 4)
    assert torch.equal(DecodeEngine(model, 3, 20).generate(prompts_BT, 8), expected)


@pytest.mark.parametrize("batch, lane", [(1, 1), (2, 3), (3, 3), (5, 6)])
def test_the_smallest_fitting_batch_size_runs(batch, lane, model):
    prompts_BT = torch.randint(50, (batch, 9), generator=torch.Generator().manual_seed(4))
    expected = torch.cat([DecodeEngine(model, 1, 20).generate(row[None], 8) for row in prompts_BT])
    engine = DecodeEngine(model, [6, 1, 3], 20)
    engine.generate(torch.zeros(6, 4, dtype=torch.int64), 3)  # leaves its states behind
    assert torch.equal(engine.generate(prompts_BT, 8), expected)
    assert len(engine.tokens_B) == lane


def test_an_engine_can_be_used_again(model, prompts_BT):
    engine = DecodeEngine(model, 3, 20)
    expected = engine.generate(prompts_BT, 8)
    engine.generate(prompts_BT.flip(1), 5)
    assert torch.equal(engine.generate(prompts_BT, 8), expected)


def test_sampled_tokens_follow_the_seed(model, prompts_BT):
    def generate(seed: int):
        return DecodeEngine(model, 3, 30, Sampling(temperature=1.0, top_p=0.95, seed=seed)).generate(prompts_BT, 12)

    assert torch.equal(generate(0), generate(0))
    assert not torch.equal(generate(0), generate(1))


class HostWaits(TorchDispatchMode):
    """Names the operations that read a value back to the host or whose result's shape depends on values."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "masked_select", "multinomial", "unique", "equal", "is_nonzero"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=0.8, top_k=9, top_p=0.9)], ids=["greedy", "drawn"]
)
def test_a_step_neither_waits_nor_moves_its_state(sampling, model, prompts_BT):
    engine = DecodeEngine(model, 3, 20, sampling)
    engine.prefill(prompts_BT)
    tensors = [*(t for state in engine.cache.layers for t in state), engine.cache.lengths_B, engine.tokens_B]
    addresses = [t.data_ptr() for t in tensors]
    with torch.inference_mode(), HostWaits() as waits:
        engine.advance()
    assert waits.found == []
    assert [t.data_ptr() for t in tensors] == addresses
    now = [*(t for state in engine.cache.layers for t in state), engine.cache.lengths_B, engine.tokens_B]
    assert all(a is b for a, b in zip(now, tensors, strict=True))


def test_returned_tokens_are_not_overwritten(model, prompts_BT):
    engine = DecodeEngine(model, 3, 20)
    first = engine.prefill(prompts_BT)
    kept = first.clone()
    engine.step()
    assert torch.equal(first, kept)


def test_errors_say_what_fits(model, prompts_BT):
    engine = DecodeEngine(model, 3, 10)
    with pytest.raises(ValueError, match=r"prompts are \[3, 11\]: this engine takes up to \[3, 10\]"):
        engine.prefill(torch.zeros(3, 11, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"prompts are \[4, 9\]"):
        engine.prefill(prompts_BT[[0, 1, 2, 0]])
    engine.prefill(prompts_BT)
    engine.step()
    with pytest.raises(ValueError, match="context of 10 tokens is full"):
        engine.step()

import pytest
import torch

from flashslm.inference import operator_step
from flashslm.inference.operator_step import build_head_step, build_operator_step
from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM, Layer


@pytest.fixture
def seen_lengths(monkeypatch):
    """The lengths that every call of `Layer.step`, the engine's own, was given."""
    seen = []
    step = Layer.step

    def spy(self, x_BD, state, position):
        seen.append((type(self.operator).__name__, position.lengths_B.tolist(), tuple(x_BD.shape)))
        return step(self, x_BD, state, position)

    monkeypatch.setattr(Layer, "step", spy)
    return seen


@pytest.mark.parametrize("operator, name", [("D", "DeltaNet"), ("M", "Mamba2"), ("A", "Attention"), ("F", "FFN")])
def test_runs_the_operator_at_the_context(operator, name, architecture, seen_lengths):
    step = build_operator_step(architecture, operator, 2, context=16, device="cpu", dtype=torch.float32, copies=3)
    for _ in range(4):
        step()
    # Six meta tokens come before the 16 text tokens; the position stays where it is.
    assert seen_lengths == [(name, [22, 22], (2, 32))] * 3 * 4


def test_attention_reads_the_whole_context(architecture, monkeypatch):
    """The cache is filled up to the new token: were it empty or masked, keys there would have no influence."""
    caches = []
    fill = operator_step._filled_cache
    monkeypatch.setattr(operator_step, "_filled_cache", lambda *args: caches.append(fill(*args)) or caches[-1])
    outputs = []
    step_of_layer = Layer.step
    monkeypatch.setattr(Layer, "step", lambda *args: outputs.append(step_of_layer(*args)) or outputs[-1])
    step = build_operator_step(architecture, "A", 1, context=16, device="cpu", dtype=torch.float32)
    assert isinstance(caches[0], Cache) and caches[0].slots == 23
    for slot in (0, 5, 21):
        step()
        caches[0].layers[0].values[:, slot] += 100
        step()
        assert (outputs[-1] - outputs[-2]).abs().max() > 1e-3


def test_head_step_is_a_step_without_layers(architecture, monkeypatch):
    logits = []
    decode_step = HybridLM.decode_step

    def spy(self, tokens_B, cache):
        logits.append((tokens_B.clone(), decode_step(self, tokens_B, cache), self))
        return logits[-1][1]

    monkeypatch.setattr(HybridLM, "decode_step", spy)
    step = build_head_step(architecture, batch=3, device="cpu", dtype=torch.float32)
    for _ in range(3):
        step()
    (tokens_B, logits_BV, model), following = logits[0], logits[1]
    assert len(model.layers) == 0 and logits_BV.shape == (3, 50)
    with torch.inference_mode():
        torch.testing.assert_close(logits_BV, model.logits(model.final_norm(model.embedding(tokens_B))))
    assert torch.equal(following[0], logits_BV.argmax(-1))

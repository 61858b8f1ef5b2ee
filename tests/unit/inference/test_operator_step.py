import sys
from contextlib import nullcontext
from types import ModuleType, SimpleNamespace

import pytest
import torch

from flashslm.inference import operator_step
from flashslm.inference.decode_graph import WARM_UP_STEPS
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.operator_step import build_decode_steps, build_head_step, build_operator_step
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


def test_head_steps_take_turns_with_embeddings_of_their_own(architecture, monkeypatch):
    used = []
    decode_step = HybridLM.decode_step
    monkeypatch.setattr(HybridLM, "decode_step", lambda self, *args: used.append(self) or decode_step(self, *args))
    step = build_head_step(architecture, batch=1, device="cpu", dtype=torch.float32, copies=3)
    for _ in range(6):
        step()
    assert len(set(used)) == 3 and used[:3] == used[3:]
    assert not torch.equal(used[0].embedding.weight, used[1].embedding.weight)


@pytest.fixture
def engines(monkeypatch):
    """Every engine built, and the lengths before each of its steps."""
    found = SimpleNamespace(engines=[], lengths=[])
    build, advance = DecodeEngine.__init__, DecodeEngine.advance

    def note_engine(self, *args):
        build(self, *args)
        found.engines.append(self)

    def note_lengths(self):
        found.lengths.append(self.cache.lengths_B.tolist())
        advance(self)

    monkeypatch.setattr(DecodeEngine, "__init__", note_engine)
    monkeypatch.setattr(DecodeEngine, "advance", note_lengths)
    return found


def test_decode_steps_of_several_contexts_share_an_engine(architecture, engines):
    near, far = build_decode_steps(architecture, [3, 11], 2, "cpu", torch.float32, max_context=20)
    for step in (near, far, far, near):
        step()
    (engine,) = engines.engines
    assert engine.model.architecture.operators == architecture.operators
    assert engines.lengths == [[9, 9], [17, 17], [17, 17], [9, 9]], "text tokens after six meta tokens"
    assert engine.cache.slots == 6 + 20 + 1
    keys = engine.cache.layers[architecture.operators.index("A")].keys
    assert (keys[:, :-1] != 0).all(), "every earlier token has a key"


def test_without_room_for_more_the_largest_context_decides(architecture, engines):
    build_decode_steps(architecture, [3, 11], 1, "cpu", torch.float32)
    assert engines.engines[0].cache.slots == 6 + 11 + 1


def test_on_a_gpu_the_context_is_set_back_when_its_room_is_used_up(architecture, engines, monkeypatch):
    monkeypatch.setattr(operator_step, "_steps_between_resets", lambda model: 3)
    (step,) = build_decode_steps(architecture, [4], 1, "cpu", torch.float32)
    for _ in range(7):
        step()
    assert engines.lengths == [[10], [11], [12], [10], [11], [12], [10]]
    assert engines.engines[0].cache.slots == 6 + 4 + 3


@pytest.fixture
def fused(monkeypatch):
    """A stand-in for the fused decoder, which needs Triton; the form is chosen as on CUDA."""

    class FusedDecoder:
        def __init__(self, model, cache, int8):
            self.model, self.cache, self.int8, self.calls = model, cache, int8, []

        def decode_step(self, tokens_B):
            self.calls.append("decode")
            self.cache.lengths_B += 1

        def layers_step(self):
            self.calls.append(self.cache.lengths_B.tolist())

    module = ModuleType("decoder")
    module.FusedDecoder = FusedDecoder
    monkeypatch.setitem(sys.modules, "flashslm.inference.fused.decoder", module)
    monkeypatch.setattr(operator_step, "backend_of", lambda operation, weight: "fused")
    return FusedDecoder


@pytest.mark.parametrize("weights", ["full", "int8"])
def test_the_fused_form_is_the_engines_decoder_over_the_copies(architecture, fused, weights):
    sizes = {"context": 5, "device": "cpu", "dtype": torch.float32, "copies": 3, "weights": weights}
    step = build_operator_step(architecture, "M", 2, **sizes)
    decoder = step.__self__
    assert isinstance(decoder, fused) and decoder.model.architecture.operators == "MMM"
    assert decoder.int8 == (weights == "int8")
    step()
    assert decoder.calls == ["decode", [11, 11]], "a token is embedded first, and does not count"


def test_a_captured_step_is_warmed_up_recorded_in_passes_and_replayed(monkeypatch):
    """The graph records calls made under it and repeats them, as CUDA's does kernels."""
    calls, recording, replayed = [], [], []

    class Graph:
        def replay(self):
            replayed.append(list(recording))

    class Recorder:
        def __init__(self, graph):
            assert isinstance(graph, Graph)

        def __enter__(self):
            calls.clear()

        def __exit__(self, *error):
            recording.extend(calls)

    stream = SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", Recorder)
    before = []

    def step():
        before.append(True)
        calls.append("layers")

    replay = operator_step._captured(step, passes=4)
    assert len(before) == WARM_UP_STEPS + 4
    replay()
    replay()
    assert replayed == [["layers"] * 4] * 2 and len(before) == WARM_UP_STEPS + 4
    assert replay.step is step

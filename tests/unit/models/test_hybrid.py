"""Equivalences of the whole model: cached decoding, chunked prefill, packed documents, shared meta tokens."""

import pytest
import torch

from flashslm.models.cache import Cache
from flashslm.models.hybrid import Layer

META = pytest.mark.parametrize("meta", [0, 6], ids=["no-meta", "meta"])


def filled_cache(model, batch, max_context):
    cache = Cache.allocate(model.architecture, batch, max_context, dtype=torch.float64)
    cache.reset_from_prefix(model.prefix_states(), model.architecture.num_meta_tokens)
    return cache


@META
@pytest.mark.parametrize("prompt", [1, 2, 17])
def test_prefill_and_decode_are_the_full_forward_at_every_position(prompt, meta, make_model, tokens_BT):
    model = make_model(num_meta_tokens=meta)
    expected_BTV = model.logits(model(tokens_BT)).detach()
    cache = filled_cache(model, 2, tokens_BT.shape[1])
    torch.testing.assert_close(model.prefill(tokens_BT[:, :prompt], cache), expected_BTV[:, prompt - 1])
    for t in range(prompt, tokens_BT.shape[1]):
        torch.testing.assert_close(model.decode_step(tokens_BT[:, t], cache), expected_BTV[:, t])
    assert cache.lengths_B.tolist() == [meta + tokens_BT.shape[1]] * 2


@META
@pytest.mark.parametrize("chunk", [1, 3, 16])
def test_chunked_prefill_is_one_prefill(chunk, meta, make_model, tokens_BT):
    model = make_model(num_meta_tokens=meta)
    whole, chunked = (filled_cache(model, 2, 48) for _ in range(2))
    expected = model.prefill(tokens_BT, whole)
    for piece_BT in tokens_BT.split(chunk, dim=1):
        logits = model.prefill(piece_BT, chunked)
    torch.testing.assert_close(logits, expected)
    for state, expected_state in zip(chunked.layers, whole.layers, strict=True):
        torch.testing.assert_close(tuple(state), tuple(expected_state))


@META
@pytest.mark.parametrize("operators", ["DFMFAF", "GFMFA"])
@pytest.mark.parametrize("length", [1, 2, 3, 17, 40])
def test_padding_leaves_no_trace(length, operators, meta, make_model, tokens_BT):
    """Neither in the logits nor in what the steps after it read; the padding's tokens are anything."""
    model = make_model(operators=operators, num_meta_tokens=meta)
    padded, exact = (filled_cache(model, 2, 60) for _ in range(2))
    logits = model.append(tokens_BT[:, :40], padded, meta, torch.tensor([length]))
    torch.testing.assert_close(logits, model.append(tokens_BT[:, :length], exact, meta))
    for t in range(6):
        actual, expected = (model.decode_step(tokens_BT[:, t], cache) for cache in (padded, exact))
        torch.testing.assert_close(actual, expected)
    assert padded.lengths_B.tolist() == exact.lengths_B.tolist() == [meta + length + 6] * 2


@META
def test_a_used_cache_starts_empty_again(meta, make_model, tokens_BT):
    model = make_model(num_meta_tokens=meta)
    cache = filled_cache(model, 2, 40)
    expected = model.prefill(tokens_BT[:, :9], cache).clone()
    model.prefill(tokens_BT[:, 9:], cache)
    cache.reset_from_prefix(model.prefix_states(), meta)
    torch.testing.assert_close(model.prefill(tokens_BT[:, :9], cache), expected)


@META
@pytest.mark.parametrize("window", [4, 9])
def test_packed_documents_are_separate_documents_with_gradients(window, meta, make_model):
    model = make_model(num_meta_tokens=meta, window=window)
    lengths = [1, 2, 30, 3, 38]
    tokens = torch.randint(50, (2, sum(lengths)))
    documents_BT = torch.repeat_interleave(torch.arange(5), torch.tensor(lengths)).expand(2, -1)
    targets = torch.randint(50, tokens.shape)
    loss = model.loss(tokens, targets, documents_BT)
    packed = torch.autograd.grad(loss, list(model.parameters()))
    hidden = model(tokens, documents_BT).detach()

    pieces = list(zip(tokens.split(lengths, dim=1), targets.split(lengths, dim=1), strict=True))
    torch.testing.assert_close(hidden, torch.cat([model(piece).detach() for piece, _ in pieces], dim=1))
    separate_loss = sum(model.loss(*piece) * piece[0].numel() for piece in pieces) / tokens.numel()
    torch.testing.assert_close(loss, separate_loss)
    separate = torch.autograd.grad(separate_loss, list(model.parameters()))
    for (name, _), actual, expected in zip(model.named_parameters(), packed, separate, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-9, msg=lambda m, name=name: f"{name}: {m}")


def test_rows_may_have_different_documents(make_model, tokens_BT):
    model = make_model()
    documents_BT = torch.zeros_like(tokens_BT)
    documents_BT[0, 11:] = 1
    hidden = model(tokens_BT, documents_BT)
    torch.testing.assert_close(hidden[1], model(tokens_BT)[1])
    torch.testing.assert_close(hidden[0, 11:], model(tokens_BT[:1, 11:])[0])


def test_every_parameter_learns(make_model, tokens_BT):
    model = make_model()
    model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_loss_is_the_mean_over_kept_targets(make_model, tokens_BT):
    model = make_model()
    targets_BT = tokens_BT.roll(-1, dims=1)
    targets_BT[:, -5:] = -100
    log_probabilities = model.logits(model(tokens_BT)).log_softmax(-1)[:, :-5]
    expected = -log_probabilities.gather(2, targets_BT[:, :-5, None]).mean()
    torch.testing.assert_close(model.loss(tokens_BT, targets_BT), expected)


def test_prefill_refuses_what_does_not_fit(make_model, tokens_BT):
    model = make_model()
    cache = filled_cache(model, 2, 10)
    with pytest.raises(ValueError, match=r"11 tokens after 6 exceed the cache's 16"):
        model.prefill(tokens_BT[:, :11], cache)
    cache.lengths_B[0] += 1
    with pytest.raises(ValueError, match=r"\[6, 7\] tokens: prefill needs equal lengths"):
        model.prefill(tokens_BT[:, :2], cache)


def test_sequences_of_different_lengths_decode_together(make_model, tokens_BT):
    """Two caches of one sequence each, put side by side: a step gives each what it would give alone."""
    model = make_model()
    single = [filled_cache(model, 1, 40) for _ in range(2)]
    both = filled_cache(model, 2, 40)
    for row, prompt in enumerate((4, 13)):
        model.prefill(tokens_BT[row : row + 1, :prompt], single[row])
        for target, source in zip(both.layers, single[row].layers, strict=True):
            for target_tensor, source_tensor in zip(target, source, strict=True):
                target_tensor[row] = source_tensor[0]
        both.lengths_B[row] = single[row].lengths_B[0]
    for t in range(13, 18):
        logits = model.decode_step(tokens_BT[:, t], both)
        alone = [model.decode_step(tokens_BT[row : row + 1, t], single[row])[0] for row in range(2)]
        torch.testing.assert_close(logits, torch.stack(alone))


@META
def test_recomputed_layers_run_twice_and_give_the_same_gradients(meta, make_model, tokens_BT, monkeypatch):
    model, runs = make_model(num_meta_tokens=meta), []
    streams = Layer._streams
    monkeypatch.setattr(Layer, "_streams", lambda self, *given: runs.append(self) or streams(self, *given))

    def gradients(recomputed):
        runs.clear()
        model.zero_grad()
        for layer in model.residual_layers:
            layer.recomputed = recomputed
        model.loss(tokens_BT[:, :-1], tokens_BT[:, 1:]).backward()
        return [parameter.grad.clone() for parameter in model.parameters()]

    plain, once = gradients(False), len(runs)
    again, twice = gradients(True), len(runs)
    assert (once, twice) == (len(model.residual_layers), 2 * len(model.residual_layers))
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    with torch.no_grad():
        runs.clear()
        model(tokens_BT)
    assert len(runs) == once

"""The exported modeling file under transformers: caches, padding, loss, saving."""

import pytest
import torch


def greedy(model, tokens_BT, new_tokens, **kwargs):
    return model.generate(tokens_BT, max_new_tokens=new_tokens, do_sample=False, eos_token_id=None, **kwargs)


@pytest.fixture
def long_tokens_BT():
    """Longer than the modeling file's chunks (64 and 128), and no multiple of them."""
    return torch.randint(1, 270, (2, 150), generator=torch.Generator().manual_seed(11))


def test_greedy_generation_with_cache_equals_without(exported, tokens_BT):
    cached = greedy(exported, tokens_BT, 24, use_cache=True)
    assert torch.equal(cached, greedy(exported, tokens_BT, 24, use_cache=False))
    assert len(set(cached[0, 19:].tolist())) > 3  # not one token for ever


@pytest.mark.parametrize("pieces", [[1] * 9, [100, 50], [3, 64, 1, 70, 12]], ids=str)
def test_any_split_of_the_input_gives_the_same_logits(pieces, exported, long_tokens_BT):
    tokens_BT = long_tokens_BT[:, : sum(pieces)]
    cache, logits = None, []
    with torch.no_grad():
        for piece in tokens_BT.split(pieces, dim=1):
            output = exported(piece, past_key_values=cache, use_cache=True)
            cache = output.past_key_values
            logits.append(output.logits)
        whole = exported(tokens_BT).logits
    torch.testing.assert_close(torch.cat(logits, dim=1), whole, atol=2e-5, rtol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_no_logit(side, exported, tokens_BT):
    row, pad = tokens_BT[:1], torch.zeros(1, 6, dtype=torch.long)
    padded = torch.cat([pad, row] if side == "left" else [row, pad], dim=1)
    batch = torch.cat([padded, torch.randint(1, 270, padded.shape)])
    mask = torch.ones_like(batch)
    mask[0] = (padded != 0).long()[0]
    with torch.no_grad():
        logits = exported(batch, attention_mask=mask).logits
        alone = exported(row).logits
    text = slice(6, None) if side == "left" else slice(0, 19)
    torch.testing.assert_close(logits[0, text], alone[0], atol=1e-5, rtol=0)
    assert logits.isfinite().all()


def test_left_padded_generation_equals_each_row_alone(exported, tokens_BT):
    short = tokens_BT[1:, :11]
    batch = torch.cat([tokens_BT[:1], torch.cat([torch.zeros(1, 8, dtype=torch.long), short], dim=1)])
    mask = (batch != 0).long()
    together = greedy(exported, batch, 12, attention_mask=mask)[:, 19:]
    assert torch.equal(together[0], greedy(exported, tokens_BT[:1], 12)[0, 19:])
    assert torch.equal(together[1], greedy(exported, short, 12)[0, 11:])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_leaves_no_trace_in_the_cache(side, exported, tokens_BT):
    """A padded row and a full one, swapped in the cache, then continued: each continues as if alone."""
    row, pad, more_BT = tokens_BT[1:, :11], torch.zeros(1, 8, dtype=torch.long), torch.tensor([[3, 5, 7], [9, 4, 2]])
    padded = torch.cat([pad, row] if side == "left" else [row, pad], dim=1)
    batch = torch.cat([tokens_BT[:1], padded])
    with torch.no_grad():
        cache = exported(batch, attention_mask=(batch != 0).long(), use_cache=True).past_key_values
        cache.reorder_cache(torch.tensor([1, 0]))
        continued = exported(more_BT, past_key_values=cache, use_cache=True).logits
        short = exported(torch.cat([row, more_BT[:1]], dim=1)).logits[0, -3:]
        full = exported(torch.cat([tokens_BT[:1], more_BT[1:]], dim=1)).logits[0, -3:]
    torch.testing.assert_close(continued, torch.stack([short, full]), atol=1e-5, rtol=0)


def test_beam_search_reorders_the_cache(exported, tokens_BT):
    kwargs = {"num_beams": 3, "max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    assert torch.equal(exported.generate(tokens_BT, **kwargs), exported.generate(tokens_BT, use_cache=False, **kwargs))


def test_loss_is_the_mean_shifted_cross_entropy(exported, tokens_BT):
    labels = tokens_BT.clone()
    labels[0, :7] = -100
    output = exported(tokens_BT, labels=labels)
    log_probs = output.logits.double().log_softmax(-1)
    nats = [-log_probs[b, t, labels[b, t + 1]] for b in range(2) for t in range(18) if labels[b, t + 1] != -100]
    assert output.loss.item() == pytest.approx(torch.stack(nats).mean().item(), rel=1e-5)
    output.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in exported.parameters())
    exported.zero_grad()


def test_logits_are_not_divided_by_row_norms(exported, tokens_BT):
    """The head is the embedding itself: doubling a row that is not in the input doubles its logit."""
    row, tokens_BT = 0, tokens_BT.clamp(min=1)
    weight = exported.get_input_embeddings().weight
    with torch.no_grad():
        before = exported(tokens_BT).logits[..., row]
        weight[row] *= 2
        after = exported(tokens_BT).logits[..., row]
        weight[row] /= 2
    torch.testing.assert_close(after, 2 * before)


def test_save_pretrained_round_trip(exported, load, tokens_BT, tmp_path):
    exported.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert type(again).__module__ != type(exported).__module__
    with torch.no_grad():
        assert torch.equal(again(tokens_BT).logits, exported(tokens_BT).logits)


def test_bfloat16_runs(model, export, load, tokens_BT):
    loaded = load(export(model, dtype="bfloat16")).to(torch.bfloat16)
    with torch.no_grad():
        expected = model.logits(model(tokens_BT))
        difference = (loaded(tokens_BT).logits.float() - expected).norm() / expected.norm()
    assert 0 < difference < 0.05
    assert greedy(loaded, tokens_BT, 5).shape == (2, 24)


def test_unsupported_config_is_refused(exported):
    config = type(exported.config)(**{**exported.config.to_dict(), "sliding_window": 8})
    with pytest.raises(ValueError, match="sliding_window is 8"):
        type(exported)(config)


def test_tokenizer_feeds_generation(exported_dir, exported):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported_dir, trust_remote_code=True)
    ids = tokenizer("the cat and the hat").input_ids
    assert ids[0] == 0 and tokenizer.decode(ids[1:]) == "the cat and the hat"
    assert tokenizer("the cat and the hat", add_special_tokens=False).input_ids == ids[1:]
    assert len(tokenizer) == 265
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("<|end|>",) * 3
    assert tokenizer.model_max_length == 256 - 5
    inputs = tokenizer(["the cat and the hat", "a bat"], return_tensors="pt", padding=True)
    alone = tokenizer("a bat", return_tensors="pt")
    together = exported.generate(**inputs, max_new_tokens=6, do_sample=False, eos_token_id=None)[1, -6:]
    assert torch.equal(
        together, exported.generate(**alone, max_new_tokens=6, do_sample=False, eos_token_id=None)[0, -6:]
    )

"""The exported model where others run it: transformers' generation and lm-evaluation-harness against our own."""

import json
from types import SimpleNamespace

import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import AutoTokenizer

from flashslm.evaluation.lm_eval_adapter import HybridLMAdapter
from flashslm.inference.engine import DecodeEngine

LONG = "the cat and the hat and the bat, " * 12  # more than the 251 text tokens that fit
PAIRS = [
    ("the cat", " and the hat"),
    ("a bat and", " 7"),
    ("", "the"),
    (LONG, " the bat"),
    ("the", LONG[:120]),
]


def requests(*arguments):
    return [SimpleNamespace(args=args, arguments=args) for args in arguments]


@pytest.fixture(scope="module")
def tokenizer(exported_dir):
    return AutoTokenizer.from_pretrained(exported_dir, trust_remote_code=True)


@pytest.fixture(scope="module")
def ours(model, tokenizer):
    return HybridLMAdapter(model, tokenizer, batch_size=3)


@pytest.fixture(scope="module")
def harness(exported, tokenizer):
    def make(**settings):
        return HFLM(pretrained=exported, tokenizer=tokenizer, batch_size=3, device="cpu", **settings)

    return make


@pytest.mark.parametrize("changes", [{}, {"num_meta_tokens": 0}, {"operators": "AA"}, {"operators": "DM"}], ids=str)
def test_left_padded_greedy_text_is_the_decode_engines(changes, architecture, make_model, export, load):
    """Token for token, each row of a padded batch against the same prompt alone in our own engine."""
    model = make_model(architecture.model_copy(update=changes), seed=8)
    exported = load(export(model, dtype="float32"))
    generator = torch.Generator().manual_seed(4)
    prompts = [torch.randint(1, 270, (length,), generator=generator) for length in (1, 2, 7, 70)]
    width, new = 70, 30
    padded = torch.stack([torch.nn.functional.pad(p, (width - len(p), 0)) for p in prompts])
    mask = torch.stack([(torch.arange(width) >= width - len(p)).long() for p in prompts])
    together = exported.generate(padded, attention_mask=mask, max_new_tokens=new, do_sample=False, eos_token_id=None)[
        :, width:
    ]
    for row, prompt in zip(together, prompts, strict=True):
        alone = DecodeEngine(model, batch_size=1, max_context=len(prompt) + new).generate(prompt[None], new)[0]
        assert row.tolist() == alone.tolist()
    assert len(set(map(tuple, together.tolist()))) == len(prompts)  # the prompts decide the text


def test_harness_length_leaves_the_memory_tokens_out(harness, ours, architecture):
    """Its own rule would take max_position_embeddings, which counts them."""
    assert harness().max_length == ours.max_length == architecture.max_position_embeddings - 5


def test_harness_loglikelihoods_are_ours(harness, ours):
    theirs = harness().loglikelihood(requests(*PAIRS), disable_tqdm=True)
    expected = ours.loglikelihood(requests(*PAIRS), disable_tqdm=True)
    for (nats, greedy), (expected_nats, expected_greedy) in zip(theirs, expected, strict=True):
        assert nats == pytest.approx(expected_nats, rel=1e-5)
        assert greedy == expected_greedy


def test_harness_rolling_loglikelihoods_are_ours(harness, ours):
    """Without the token in front, which the harness adds itself here: with it, that token would be scored too."""
    texts = [("the cat and the hat",), (LONG,)]
    theirs = harness(add_bos_token=False).loglikelihood_rolling(requests(*texts), disable_tqdm=True)
    assert theirs == pytest.approx(ours.loglikelihood_rolling(requests(*texts)), rel=1e-5)


def test_harness_continuations_are_ours(harness, ours, tokenizer):
    settings = {"until": [tokenizer.decode([35])], "max_gen_toks": 20, "do_sample": False}
    asked = requests(*((context, settings) for context, _ in PAIRS if context))
    theirs = harness().generate_until(asked, disable_tqdm=True)
    assert theirs == ours.generate_until(asked)
    assert all(theirs)


def test_a_padded_batch_of_texts_is_each_text_alone(exported, tokenizer):
    texts = ["the cat and the hat", "a bat", LONG[:90]]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    together = exported.generate(**batch, max_new_tokens=10, do_sample=False, eos_token_id=None)[:, -10:]
    for row, text in zip(together, texts, strict=True):
        alone = tokenizer(text, return_tensors="pt")
        expected = exported.generate(**alone, max_new_tokens=10, do_sample=False, eos_token_id=None)[0, -10:]
        assert row.tolist() == expected.tolist()


def test_n_positions_is_not_stored(exported, tmp_path):
    exported.config.save_pretrained(tmp_path)
    assert "n_positions" not in json.loads((tmp_path / "config.json").read_text())

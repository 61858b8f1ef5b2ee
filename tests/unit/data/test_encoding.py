import random
from collections.abc import Callable

import fastokens
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, trainers
from tokenizers import pre_tokenizers as pre

from flashslm.data.encoding import TextEncoder
from flashslm.data.tokenizer import train_tokenizer
from tests.unit.data.corpora import make_texts

CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
WORDS_OF_LETTERS = (
    CONTRACTIONS
    + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"  # Llama 3's
)
WORDS_BY_CASE = (  # o200k's
    rf"[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]*[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]+{CONTRACTIONS}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}]+[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}]*{CONTRACTIONS}?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
PIECES = [
    *(" ", "  ", "\t", "\n", "\r\n", "\r", "\u00a0", "\u3000", "\u2028", "\u200b", "\u200d", "\ufeff", "\x00", "\x85"),
    *(
        "'s",
        "'S",
        "'LL",
        "\u2019s",
        "don't",
        "\u017f",
        "'\u017f",
        "\u212a",
        "İ",
        "ß",
        "ǅ",
        "é",
        "e\u0301",
        "ﬁ",
        "\u1100\u1161",
    ),
    *("한국어", "日本語", "हिन्दी", "العربية", "👩‍👩‍👧‍👦", "👍🏽", "🇩🇪", "\U00010348", "123", "1234567", "٣٤", "½", "Ⅷ"),
    *(
        "<|endoftext|>",
        "<|endoftext",
        "<tool>",
        "<unk>",
        "<0x41>",
        "=====",
        "://",
        "__init__",
        "HTTPServer",
        "camelCase",
    ),
    *("river", "stone", "sleeps", " under", "the", "a" * 300, "ab" * 300, "x" * 700, "\n\n\n", "  return x\n"),
]


def documents(count: int, seed: int) -> list[str]:
    """Pieces that are hard to split, characters of every plane, and plain text."""
    rng = random.Random(seed)
    hard = ["".join(rng.choices(PIECES, k=rng.randrange(40))) for _ in range(count)]
    planes = [(0x20, 0x2FF), (0x300, 0xD7FF), (0xE000, 0x10FFFF)]
    odd = ["".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randrange(60))) for _ in range(count)]
    return ["", *hard, *odd, *make_texts(20)]


def train(pre_tokenizer: pre.PreTokenizer, **options: object) -> Tokenizer:
    """Byte-level BPE; `options` are those of the model but for `normalizer`."""
    normalizer = options.pop("normalizer", None)
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer = pre_tokenizer
    if normalizer:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken("<|endoftext|>", special=True, normalized=False)],
        initial_alphabet=pre.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(40, seed=1), trainer)
    return tokenizer


def split(pattern: str) -> pre.PreTokenizer:
    return pre.Sequence([pre.Split(Regex(pattern), "isolated"), pre.ByteLevel(add_prefix_space=False, use_regex=False)])


def with_added_tokens() -> Tokenizer:
    tokenizer = train(pre.ByteLevel(add_prefix_space=False))
    tokenizer.add_tokens([AddedToken("<tool>"), AddedToken("river", lstrip=True), AddedToken("  ", normalized=False)])
    tokenizer.add_special_tokens([AddedToken("<unk>", rstrip=True)])
    return tokenizer


def truncated() -> Tokenizer:
    tokenizer = train_tokenizer(make_texts(50), 300)
    tokenizer.enable_truncation(5)
    tokenizer.enable_padding(length=9)
    return tokenizer


def metaspace() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre.Metaspace()
    tokenizer.train_from_iterator(make_texts(50), trainers.BpeTrainer(vocab_size=90, special_tokens=["<unk>"]))
    return tokenizer


def wordpiece() -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre.BertPreTokenizer()
    tokenizer.train_from_iterator(make_texts(50), trainers.WordPieceTrainer(vocab_size=90, special_tokens=["[UNK]"]))
    return tokenizer


def naive_ids(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    plain = Tokenizer.from_str(tokenizer.to_str())
    plain.encode_special_tokens = True
    plain.no_truncation()
    plain.no_padding()
    return [encoding.ids for encoding in plain.encode_batch(texts, add_special_tokens=False)]


@pytest.mark.parametrize(
    ("make", "library"),
    [
        pytest.param(lambda: train_tokenizer(make_texts(50), 300), "fastokens", id="trained"),
        pytest.param(truncated, "fastokens", id="truncates-and-pads"),
        pytest.param(lambda: train(pre.ByteLevel(add_prefix_space=True)), "fastokens", id="prefix-space"),
        pytest.param(lambda: train(split(WORDS_OF_LETTERS)), "fastokens", id="llama-3"),
        pytest.param(lambda: train(split(WORDS_OF_LETTERS), ignore_merges=True), "fastokens", id="ignores-merges"),
        pytest.param(lambda: train(split(WORDS_BY_CASE)), "fastokens", id="o200k"),
        pytest.param(lambda: train(split(WORDS_OF_LETTERS), normalizer=normalizers.NFC()), "fastokens", id="nfc"),
        pytest.param(
            lambda: train(pre.Sequence([pre.Digits(individual_digits=True), pre.ByteLevel(add_prefix_space=False)])),
            "fastokens",
            id="digits",
        ),
        pytest.param(with_added_tokens, "fastokens", id="added-tokens"),
        pytest.param(
            lambda: train(split(WORDS_OF_LETTERS), normalizer=normalizers.NFKC()), "tokenizers", id="nfkc-is-not-known"
        ),
        pytest.param(metaspace, "tokenizers", id="metaspace-is-not-known"),
        pytest.param(wordpiece, "tokenizers", id="wordpiece-is-not-known"),
    ],
)
def test_ids_are_those_of_tokenizers(make: Callable[[], Tokenizer], library: str) -> None:
    tokenizer, texts = make(), documents(250, seed=2)
    encoder = TextEncoder(tokenizer)
    assert encoder.name == library
    assert [ids.tolist() for ids in encoder.encode(texts)] == naive_ids(tokenizer, texts)
    assert encoder.encode([]) == []
    assert [ids.tolist() for ids in encoder.encode([""])] == [naive_ids(tokenizer, [""])[0]]


def test_letters_that_fold_to_ascii_are_encoded_by_tokenizers() -> None:
    """fastokens 0.3.5 alone gives "g'ſ", "'s", "t", where `tokenizers` gives "g'ſ", "'st"."""
    tokenizer = train(split(WORDS_BY_CASE))
    tokenizer.train_from_iterator(
        ["'st 'st 'st 'st"] * 50, trainers.BpeTrainer(initial_alphabet=pre.ByteLevel.alphabet(), show_progress=False)
    )
    texts = ["a plain one", "g'\u017f'st", "another"]
    assert [ids.tolist() for ids in TextEncoder(tokenizer).encode(texts)] == naive_ids(tokenizer, texts)


def test_an_encoder_that_differs_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer, other = (train_tokenizer(make_texts(50, seed), 300) for seed in (0, 1))
    wrong = fastokens.Tokenizer.from_json_str(train(split(WORDS_OF_LETTERS)).to_str())
    assert TextEncoder(other).name == "fastokens"
    monkeypatch.setattr(fastokens.Tokenizer, "from_json_str", staticmethod(lambda text: wrong), raising=True)
    encoder = TextEncoder(tokenizer)
    assert encoder.name == "tokenizers"
    texts = make_texts(5)
    assert [ids.tolist() for ids in encoder.encode(texts)] == naive_ids(tokenizer, texts)


def test_text_beyond_the_fast_encoders_limits_is_encoded_all_the_same() -> None:
    class Limited:
        def encode_batch_flat(self, *texts: object, **options: object) -> tuple[bytes, bytes]:
            raise RuntimeError("match limit exceeded")

    tokenizer, texts = train_tokenizer(make_texts(50), 300), make_texts(3)
    encoder = TextEncoder(tokenizer)
    encoder._fast = Limited()
    found = encoder.encode(texts)
    assert [ids.tolist() for ids in found] == naive_ids(tokenizer, texts)
    assert all(ids.dtype == np.uint32 for ids in found)

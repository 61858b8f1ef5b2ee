"""Recall from long texts in words: one fact in a text, asked for at its end, in the manner of RULER's single needles.

`single_1` hides a number among repeated sentences, `single_2` a number and `single_3` a UUID in text of the test split
(Hsieh et al. 2024, arXiv 2404.06654; the words are this project's). `mqar` is in `associative_recall`.
"""

import random
import uuid
from dataclasses import dataclass
from typing import Any, Literal

import torch

from flashslm.data.loader import TokenLoader
from flashslm.evaluation.associative_recall import evaluate_associative_recall
from flashslm.evaluation.items import MetricItems, accuracy_items, identity
from flashslm.evaluation.needle import HAYSTACK_TOKENS, by_depth
from flashslm.inference.continuous import ContinuousBatch
from flashslm.models.hybrid import HybridLM

RecallTask = Literal["single_1", "single_2", "single_3", "mqar"]
BATCH = 8
SPARE_TOKENS = 8  # of an answer, beyond those of the value
INTRODUCTION = "A special magic {kind} is hidden in the following text. Remember it: it is asked for at the end.\n"
FACT = " One of the special magic {kind}s for {key} is: {value}."
QUESTION = "\nWhat is the special magic {kind} for {key}? The special magic {kind} for {key} in the text above is:"
NOISE = " The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again."
FIRST_WORDS = ("amber", "brave", "calm", "dusty", "early", "faint", "green", "heavy", "icy", "jolly", "keen", "loud")
SECOND_WORDS = ("anchor", "basket", "candle", "desert", "engine", "forest", "garden", "harbor", "island", "jacket")


@dataclass(frozen=True)
class HiddenFact:
    """A prompt whose next words are the answer."""

    prompt: list[int]
    answer: str


def evaluate_recall(
    model: HybridLM, loader: TokenLoader, tokenizer: Any, task: RecallTask, length: int, samples: int, seed: int
) -> tuple[dict[str, Any], dict[str, MetricItems]]:
    """Share of answers that are right, at `length` tokens with the answer; the same seed gives the same texts.

    Returns what was asked, with `by_depth` (shares of at most 8 equal parts of the text, from its beginning), and the
    metric `accuracy` by text.
    """
    if task == "mqar":
        by_part, items = evaluate_associative_recall(model, loader, length, samples, seed)
    else:
        facts, answer_tokens = hide_facts(loader, tokenizer, task, length, samples, seed)
        batch = ContinuousBatch(model, min(BATCH, samples), length)
        texts = batch.generate([fact.prompt for fact in facts], answer_tokens, lambda _: False)
        found = [fact.answer in tokenizer.decode(text) for fact, text in zip(facts, texts, strict=True)]
        items = accuracy_items(found, identity(*(repr(fact).encode() for fact in facts)))
        by_part = by_depth(torch.tensor(found))
    return {"task": task, "length": length, "samples": samples, "by_depth": by_part}, {"accuracy": items}


def hide_facts(
    loader: TokenLoader, tokenizer: Any, task: RecallTask, length: int, samples: int, seed: int
) -> tuple[list[HiddenFact], int]:
    """Texts with depths spread evenly, and the tokens that an answer has; together they are `length` tokens.

    Raises ValueError where a text has no place for its fact and question.
    """
    rng = random.Random(f"{task} {length} {seed}")
    kind = "identifier" if task == "single_3" else "number"
    values = [_value(rng, kind) for _ in range(samples)]
    answer_tokens = max(len(_ids(tokenizer, f" {value}")) for value in values) + SPARE_TOKENS
    found = []
    for number, value in enumerate(values):
        words = {"kind": kind, "key": f"{rng.choice(FIRST_WORDS)}-{rng.choice(SECOND_WORDS)}", "value": value}
        begin, fact, question = (_ids(tokenizer, text.format(**words)) for text in (INTRODUCTION, FACT, QUESTION))
        room = length - answer_tokens - 1 - len(begin) - len(fact) - len(question)
        if room < 1:
            raise ValueError(
                f"{task} of {length} tokens has no place for its fact and question: {1 - room} are missing"
            )
        hay = _hay(loader, tokenizer, task, room, rng)
        depth = int((number + rng.random()) / samples * (room + 1))
        prompt = [loader.end_of_document_id, *begin, *hay[:depth], *fact, *hay[depth:], *question]
        found.append(HiddenFact(prompt, value))
    return found, answer_tokens


def _hay(loader: TokenLoader, tokenizer: Any, task: RecallTask, size: int, rng: random.Random) -> list[int]:
    """Tokens around the fact; a split that is shorter comes again."""
    if task == "single_1":
        source = _ids(tokenizer, NOISE)
    else:
        tokens = loader.tokens(0, HAYSTACK_TOKENS)
        source = tokens[tokens != loader.end_of_document_id].tolist()
        start = rng.randrange(len(source))
        source = source[start:] + source[:start]
    return (source * (size // len(source) + 1))[:size]


def _value(rng: random.Random, kind: str) -> str:
    return (
        str(uuid.UUID(int=rng.getrandbits(128), version=4))
        if kind == "identifier"
        else str(rng.randint(10**6, 10**7 - 1))
    )


def _ids(tokenizer: Any, text: str) -> list[int]:
    """Of a `tokenizers.Tokenizer`."""
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids

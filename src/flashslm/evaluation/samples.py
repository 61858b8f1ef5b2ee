"""What a model makes of the beginnings of held-out documents, for a person to read."""

from typing import TypedDict

import torch
from tokenizers import Tokenizer

from flashslm.data.loader import TokenLoader
from flashslm.inference.engine import DecodeEngine
from flashslm.models.hybrid import HybridLM

NUM_SAMPLES = 3
PROMPT_TOKENS = 32
NEW_TOKENS = 64
SEARCHED_TOKENS = 1_000_000  # of the split, for documents that are long enough


class Continuation(TypedDict):
    """A document's first tokens, and the model's greedy continuation up to the end of the text."""

    prompt: str
    continuation: str


def continue_documents(model: HybridLM, loader: TokenLoader, tokenizer: Tokenizer) -> list[Continuation]:
    """Greedy continuations of the first documents of the split that are as long as a prompt; none where no document is.

    Prompt and continuation are shorter where the model has fewer positions.
    """
    positions = model.architecture.max_position_embeddings - model.architecture.num_meta_tokens
    prompt_tokens = min(PROMPT_TOKENS, positions // 3)
    new_tokens = min(NEW_TOKENS, positions - prompt_tokens - 1)
    prompts = document_beginnings(loader, prompt_tokens)
    if not prompts:
        return []
    engine = DecodeEngine(model, len(prompts), prompt_tokens + 1 + new_tokens)
    begin = loader.end_of_document_id
    texts_ST = engine.generate(torch.tensor([[begin, *prompt] for prompt in prompts]), new_tokens).cpu().tolist()
    return [
        {"prompt": tokenizer.decode(prompt), "continuation": tokenizer.decode(_up_to(ids, begin))}
        for prompt, ids in zip(prompts, texts_ST, strict=True)
    ]


def document_beginnings(loader: TokenLoader, length: int) -> list[list[int]]:
    """The first `length` tokens of the first documents of the split that have so many."""
    tokens = loader.tokens(0, SEARCHED_TOKENS)
    ends = [-1, *torch.nonzero(tokens == loader.end_of_document_id)[:, 0].tolist()]
    long_enough = [i + 1 for i, j in zip(ends, [*ends[1:], len(tokens)], strict=True) if j - i - 1 >= length]
    return [tokens[start : start + length].tolist() for start in long_enough[:NUM_SAMPLES]]


def _up_to(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids

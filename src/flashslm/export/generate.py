"""Continue a text with an exported model, by the project's own decode engine."""

from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from flashslm.export.files import read_object
from flashslm.export.hf_config import architecture_from_config, shown
from flashslm.export.importing import load_export
from flashslm.export.published import plain_config
from flashslm.export.tokenizer import open_tokenizer
from flashslm.hardware import pick_device
from flashslm.inference.engine import DecodeEngine
from flashslm.inference.sampling import Sampling


def generate_text(
    directory: Path,
    prompt: str,
    max_new_tokens: int,
    *,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
) -> dict[str, Any]:
    """Return `text` (the continuation), `prompt_tokens`, `new_tokens` and `time_s` (prefill and decoding).

    Every text begins with the beginning-of-text token, as every document does in training, and ends before the
    end-of-text token. Raises ValueError for a directory without a model, and when prompt and continuation exceed the
    model's positions.
    """
    missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"'{directory}' is not an exported model ({', '.join(missing)} not found): "
            "give a directory such as runs/latest/export/huggingface"
        )
    tokenizer = open_tokenizer(directory)
    config = read_object(directory / "config.json")
    architecture = architecture_from_config(plain_config(config)[0])
    sampling = Sampling(temperature, top_k, top_p, seed)
    prompt_ids = [_token_ids(config, "bos_token_id")[0], *tokenizer.encode(prompt, add_special_tokens=False).ids]
    text_positions = architecture.max_position_embeddings - architecture.num_meta_tokens
    ends = set(_token_ids(config, "eos_token_id"))
    context = len(prompt_ids) + max_new_tokens
    if context > text_positions:
        raise ValueError(
            f"prompt ({len(prompt_ids)} tokens) and max_new_tokens {max_new_tokens} exceed {text_positions} tokens"
        )
    model = load_export(directory, pick_device("auto")).eval()
    engine = DecodeEngine(model, batch_size=1, max_context=context, sampling=sampling)
    started = perf_counter()
    new_ids = _decode(engine, prompt_ids, max_new_tokens, ends)
    return {
        "text": tokenizer.decode(new_ids),
        "prompt_tokens": len(prompt_ids),
        "new_tokens": len(new_ids),
        "time_s": perf_counter() - started,
    }


def _token_ids(config: dict[str, Any], name: str) -> list[int]:
    """A special token's id; published models may have several."""
    found = config.get(name)
    ids: list[Any] = found if isinstance(found, list) else [found]
    if not ids or not all(type(token_id) is int for token_id in ids):
        raise ValueError(f"config.json: {name} is {shown(found)}: expected a token's id")
    return ids


def _decode(engine: DecodeEngine, prompt_ids: list[int], max_new_tokens: int, ends: set[int]) -> list[int]:
    """Decode until an end-of-text token, which is left out, or `max_new_tokens`."""
    token = int(engine.prefill(torch.tensor([prompt_ids])))
    new_ids: list[int] = []
    while token not in ends:
        new_ids.append(token)
        if len(new_ids) == max_new_tokens:
            break
        token = int(engine.step())
    return new_ids

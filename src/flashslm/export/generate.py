"""Continue a text with an exported model, by the project's own decode engine."""

from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from flashslm.export.files import read_json
from flashslm.export.importing import load_export
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
    from tokenizers import Tokenizer

    missing = [name for name in ("config.json", "tokenizer.json") if not (directory / name).is_file()]
    if missing:
        raise ValueError(
            f"'{directory}' is no exported model ({', '.join(missing)} not found): "
            "give a directory such as runs/latest/export/huggingface"
        )
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    config = read_json(directory / "config.json")
    sampling = Sampling(temperature, top_k, top_p, seed)
    prompt_ids = [config["bos_token_id"], *tokenizer.encode(prompt, add_special_tokens=False).ids]
    room = config["max_position_embeddings"] - config["num_memory_tokens"]
    context = len(prompt_ids) + max_new_tokens
    if context > room:
        raise ValueError(f"prompt ({len(prompt_ids)} tokens) and max_new_tokens {max_new_tokens} exceed {room} tokens")
    model = load_export(directory, pick_device("auto")).eval()
    engine = DecodeEngine(model, batch_size=1, max_context=context, sampling=sampling)
    started = perf_counter()
    ends = config["eos_token_id"]
    new_ids = _decode(engine, prompt_ids, max_new_tokens, set(ends) if isinstance(ends, list) else {ends})
    return {
        "text": tokenizer.decode(new_ids),
        "prompt_tokens": len(prompt_ids),
        "new_tokens": len(new_ids),
        "time_s": perf_counter() - started,
    }


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

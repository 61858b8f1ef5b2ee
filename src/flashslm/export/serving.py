"""AutoDeploy's serving recipe of a bundle: fitted to the model, and held to it. No torch here."""

from pathlib import Path
from typing import Any

import yaml

from flashslm.export.hf_config import CLASS_NAME
from flashslm.models.architecture import Architecture

RECIPE_FILE = "nemotron_flash.yaml"
GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 64, 96, 128, 256, 320, 384)
MAX_STEP_TOKENS = 8192  # prompt tokens a step takes; longer prompts are prefilled in chunks


def serving_recipe(architecture: Architecture, max_batch_size: int) -> dict[str, Any]:
    """AutoDeploy's options, as far as the model's positions reach; the memory tokens take the first of them."""
    max_seq_len = architecture.max_position_embeddings
    graph_sizes = {size for size in GRAPH_BATCH_SIZES if size <= max_batch_size} | {max_batch_size}
    return {
        "model_factory": CLASS_NAME,
        "compile_backend": "torch-cudagraph",
        "max_batch_size": max_batch_size,
        "max_seq_len": max_seq_len,
        "max_num_tokens": max(max_batch_size, min(MAX_STEP_TOKENS, max_batch_size * max_seq_len)),
        "enable_chunked_prefill": True,
        "cuda_graph_batch_sizes": sorted(graph_sizes),
        # Reuse of blocks would restore keys and values without the recurrent states that belong to them.
        "kv_cache_config": {"free_gpu_memory_fraction": 0.9, "enable_block_reuse": False},
        "transforms": {
            "gather_logits_before_lm_head": {"enabled": True},
            "fuse_mamba_a_log": {"stage": "post_load_fusion", "enabled": True},
        },
    }


def read_recipe(directory: Path) -> dict[str, Any]:
    """The recipe of a bundle. Raises ValueError when it is no YAML mapping."""
    try:
        recipe = yaml.safe_load((directory / RECIPE_FILE).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({error})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"holds a {type(recipe).__name__}, not a mapping of options")
    return recipe


def recipe_problems(recipe: dict[str, Any], architecture: Architecture) -> list[str]:
    """Where a recipe and the model disagree; the numbers may be changed as far as the model allows."""
    a = architecture
    integers = [
        name for name in ("max_batch_size", "max_seq_len", "max_num_tokens") if type(recipe.get(name)) is not int
    ]
    problems = [f"{name} is {recipe.get(name)!r}: expected int" for name in integers]
    if recipe.get("model_factory") != CLASS_NAME:
        problems.append(
            f"model_factory is {recipe.get('model_factory')!r}: without '{CLASS_NAME}' another class is built"
        )
    cache = recipe.get("kv_cache_config")
    if not isinstance(cache, dict) or cache.get("enable_block_reuse") is not False:
        problems.append("kv_cache_config.enable_block_reuse must be false: recurrent states cannot be reused")
    if problems:
        return problems
    batch, length, step = recipe["max_batch_size"], recipe["max_seq_len"], recipe["max_num_tokens"]
    if not a.num_meta_tokens < length <= a.max_position_embeddings:
        allowed = f"{a.num_meta_tokens + 1} to {a.max_position_embeddings}"
        problems.append(f"max_seq_len is {length}: the model has positions for {allowed}, memory tokens included")
    if not 1 <= batch <= step:
        problems.append(f"max_batch_size is {batch}: allowed is 1 to max_num_tokens, {step}")
    sizes = recipe.get("cuda_graph_batch_sizes")
    if not isinstance(sizes, list) or not all(type(size) is int and 1 <= size <= batch for size in sizes):
        problems.append(f"cuda_graph_batch_sizes is {sizes!r}: expected integers from 1 to max_batch_size, {batch}")
    return problems

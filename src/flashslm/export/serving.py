"""AutoDeploy's serving recipe of a bundle: fitted to the model, and checked against it. No torch here."""

from pathlib import Path
from typing import Any

import yaml

from flashslm.export.hf_config import CLASS_NAME, MAX_SIZE, shown
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
    """The recipe of a bundle. Raises ValueError when it is not a YAML mapping."""
    try:
        recipe = yaml.safe_load((directory / RECIPE_FILE).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({error})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"holds a {type(recipe).__name__}, not a mapping of options")
    return recipe


def recipe_problems(recipe: dict[str, Any], architecture: Architecture) -> list[str]:
    """Where a recipe and the model disagree; the numbers may be changed as far as the model allows."""
    return _option_problems(recipe) or _length_problems(recipe, architecture)


def _option_problems(recipe: dict[str, Any]) -> list[str]:
    """Options of another kind, and the two that no model of this class runs right without."""
    problems = [
        f"{name} is {shown(recipe.get(name))}: expected int, 1 to {MAX_SIZE:,}"
        for name in ("max_batch_size", "max_seq_len", "max_num_tokens")
        if type(recipe.get(name)) is not int or not 1 <= recipe[name] <= MAX_SIZE
    ]
    factory, chunked = recipe.get("model_factory"), recipe.get("enable_chunked_prefill", False)
    if factory != CLASS_NAME:
        problems.append(f"model_factory is {shown(factory)}: without '{CLASS_NAME}' another class is built")
    if type(chunked) is not bool:
        problems.append(f"enable_chunked_prefill is {shown(chunked)}: expected bool")
    cache, transforms = recipe.get("kv_cache_config"), recipe.get("transforms", {})
    cache = cache if isinstance(cache, dict) else {}
    if cache.get("enable_block_reuse") is not False:
        problems.append("kv_cache_config.enable_block_reuse must be false: recurrent states cannot be reused")
    fraction = cache.get("free_gpu_memory_fraction", 0.9)
    if type(fraction) not in (int, float) or not 0 < fraction <= 1:
        problems.append(f"kv_cache_config.free_gpu_memory_fraction is {shown(fraction)}: expected above 0, at most 1")
    if not isinstance(transforms, dict) or not all(isinstance(options, dict) for options in transforms.values()):
        problems.append(f"transforms is {shown(transforms)}: expected a mapping of options for each")
    return problems


def _length_problems(recipe: dict[str, Any], a: Architecture) -> list[str]:
    problems = []
    batch, length, step = recipe["max_batch_size"], recipe["max_seq_len"], recipe["max_num_tokens"]
    if not a.num_meta_tokens < length <= a.max_position_embeddings:
        allowed = f"{a.num_meta_tokens + 1} to {a.max_position_embeddings}"
        problems.append(f"max_seq_len is {length}: the model has positions for {allowed}, memory tokens included")
    if batch > step:
        problems.append(f"max_batch_size is {batch}: allowed is 1 to max_num_tokens, {step}")
    if length > step and not recipe.get("enable_chunked_prefill"):
        problems.append(
            f"max_num_tokens is {step}: without enable_chunked_prefill no step takes a prompt of max_seq_len, {length}"
        )
    sizes = recipe.get("cuda_graph_batch_sizes")
    if not isinstance(sizes, list) or not all(type(size) is int and 1 <= size <= batch for size in sizes):
        allowed = f"integers from 1 to max_batch_size, {batch}"
        problems.append(f"cuda_graph_batch_sizes is {shown(sizes)}: expected {allowed}")
    return problems

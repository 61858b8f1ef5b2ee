"""AutoDeploy's serving recipes of a bundle: fitted to the model, and checked against it. No torch here."""

from pathlib import Path
from typing import Any

import yaml

from flashslm.export.hf_config import CLASS_NAME, MAX_SIZE, shown
from flashslm.models.architecture import Architecture

RECIPE_FILE = "nemotron_flash.yaml"  # for TensorRT-LLM 1.2
LATER_RECIPE_FILE = "nemotron_flash_1.3.yaml"  # for later releases, as long as they have AutoDeploy
RECIPE_FILES = (RECIPE_FILE, LATER_RECIPE_FILE)
STATE_DTYPES = ("auto", "float16", "bfloat16", "float32")
GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 64, 96, 128, 256, 320, 384)
MAX_STEP_TOKENS = 8192  # prompt tokens a step takes; longer prompts are prefilled in chunks


def serving_recipes(architecture: Architecture, max_batch_size: int) -> dict[str, dict[str, Any]]:
    """AutoDeploy's options by file, as far as the model's positions reach; the memory tokens take the first of them.

    The versions differ in where they read the batch sizes of CUDA graphs, and refuse the other place.
    """
    graph_sizes = sorted({size for size in GRAPH_BATCH_SIZES if size <= max_batch_size} | {max_batch_size})
    options = _shared_options(architecture, max_batch_size)
    return {
        RECIPE_FILE: options | {"cuda_graph_batch_sizes": graph_sizes},
        LATER_RECIPE_FILE: options | {"cuda_graph_config": {"batch_sizes": graph_sizes}},
    }


def _shared_options(architecture: Architecture, max_batch_size: int) -> dict[str, Any]:
    max_seq_len = architecture.max_position_embeddings
    return {
        "model_factory": CLASS_NAME,
        "compile_backend": "torch-cudagraph",
        "max_batch_size": max_batch_size,
        "max_seq_len": max_seq_len,
        "max_num_tokens": max(max_batch_size, min(MAX_STEP_TOKENS, max_batch_size * max_seq_len)),
        "enable_chunked_prefill": True,
        "kv_cache_config": {
            "free_gpu_memory_fraction": 0.9,
            # Reuse of blocks would restore keys and values without the recurrent states that belong to them.
            "enable_block_reuse": False,
            # A sum over all tokens, of which bfloat16 loses the late ones.
            "mamba_ssm_cache_dtype": "float32",
        },
        "transforms": {
            "gather_logits_before_lm_head": {"enabled": True},
            "fuse_mamba_a_log": {"stage": "post_load_fusion", "enabled": True},
        },
    }


def read_recipe(file: Path) -> dict[str, Any]:
    """A recipe of a bundle. Raises ValueError when it is not a YAML mapping."""
    try:
        recipe = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML ({error})") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"holds a {type(recipe).__name__}, not a mapping of options")
    return recipe


def recipe_problems(recipe: dict[str, Any], architecture: Architecture, file: str = RECIPE_FILE) -> list[str]:
    """Where a recipe and the model or the file's version disagree; numbers may change as far as the model allows."""
    return _option_problems(recipe) or [*_length_problems(recipe, architecture), *_graph_problems(recipe, file)]


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
    if (dtype := cache.get("mamba_ssm_cache_dtype", "auto")) not in STATE_DTYPES:
        allowed = ", ".join(STATE_DTYPES)
        problems.append(f"kv_cache_config.mamba_ssm_cache_dtype is {shown(dtype)}: expected one of {allowed}")
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
    return problems


def _graph_problems(recipe: dict[str, Any], file: str) -> list[str]:
    """Without sizes a later version takes those up to 128, and refuses a max_batch_size below."""
    batch, name, problems = recipe["max_batch_size"], "cuda_graph_batch_sizes", []
    sizes = recipe.get(name)
    if file == LATER_RECIPE_FILE:
        if sizes is not None:
            problems.append(f"{name} is refused by this file's versions: give cuda_graph_config.batch_sizes")
        graphs, name = recipe.get("cuda_graph_config"), "cuda_graph_config.batch_sizes"
        sizes = graphs.get("batch_sizes") if isinstance(graphs, dict) else None
    if not isinstance(sizes, list) or not sizes or not all(type(s) is int and 1 <= s <= batch for s in sizes):
        problems.append(f"{name} is {shown(sizes)}: expected integers from 1 to max_batch_size, {batch}")
    return problems

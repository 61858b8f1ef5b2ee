"""A TensorRT-LLM AutoDeploy bundle made from a Hugging Face export: same weights, a serving recipe, the commands."""

from pathlib import Path

import yaml

from flashslm.export.files import link_or_copy, read_json, whole_directory, write_json
from flashslm.export.hf_config import CLASS_NAME, CONFIG_CLASS, architecture_from_config
from flashslm.export.huggingface import MODELING_FILE, ExportSummary, summarize
from flashslm.models.architecture import Architecture

RECIPE_FILE = "nemotron_flash.yaml"
GRAPH_BATCH_SIZES = (1, 2, 4, 8, 16, 24, 32, 64, 96, 128, 256, 320, 384)
MAX_STEP_TOKENS = 8192  # prompt tokens a step takes; longer prompts are prefilled in chunks


def export_tensorrt_llm(huggingface_dir: Path, directory: Path, max_batch_size: int = 64) -> ExportSummary:
    """Write the bundle whole or not at all; weights are hard links to the export's where the file system allows it.

    The class to run is TensorRT-LLM's own, so the modeling file stays behind. Raises ConfigMismatch when the source
    directory is no export of ours.
    """
    config = read_json(huggingface_dir / "config.json")
    architecture = architecture_from_config(config)
    written_anew = {"config.json", "README.md", MODELING_FILE}
    with whole_directory(directory) as temporary:
        for source in sorted(huggingface_dir.iterdir()):
            if source.name not in written_anew:
                link_or_copy(source, temporary / source.name)
        write_json(temporary / "config.json", config | {"auto_map": {"AutoConfig": CONFIG_CLASS}})
        recipe = yaml.safe_dump(serving_recipe(architecture, max_batch_size), sort_keys=False)
        (temporary / RECIPE_FILE).write_text(recipe, encoding="utf-8")
        readme = _readme(architecture, config["dtype"])
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        return summarize(architecture, config["dtype"], temporary, directory)


def serving_recipe(architecture: Architecture, max_batch_size: int) -> dict[str, object]:
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


def deployment_notes(architecture: Architecture, dtype: str) -> list[str]:
    """What may not run, or not run fast, on TensorRT-LLM's GPU kernels."""
    a = architecture
    found = {
        f"weights are {dtype}: the kernels are built for bfloat16 (export.dtype)": dtype != "bfloat16",
        f"head size {a.head_dim}: FlashInfer attention wants 64 or 128": "A" in a.operators
        and a.head_dim not in (64, 128),
        f"head size {a.head_dim}: the delta rule's kernel takes at most 256": "D" in a.operators and a.head_dim > 256,
        "no attention layer: a model without a KV cache is not tried in AutoDeploy": "A" not in a.operators,
        f"Mamba-2 state {a.mamba_state} and head {a.mamba_head_dim}: powers of two are expected": "M" in a.operators
        and (a.mamba_state.bit_count() > 1 or a.mamba_head_dim.bit_count() > 1),
        f"{a.mamba_heads} Mamba-2 heads: other code for this format wants a multiple of 8": "M" in a.operators
        and a.mamba_heads % 8 > 0,
    }
    return [note for note, applies in found.items() if applies]


def _readme(architecture: Architecture, dtype: str) -> str:
    notes = deployment_notes(architecture, dtype) or ["none"]
    return _README.format(
        digest=architecture.digest,
        recipe=RECIPE_FILE,
        vocab_size=architecture.vocab_size,
        num_meta_tokens=architecture.num_meta_tokens,
        context=architecture.max_position_embeddings - architecture.num_meta_tokens,
        notes="\n".join(f"- {note}" for note in notes),
    )


_README = """# TensorRT-LLM AutoDeploy bundle

Architecture digest `{digest}`. TensorRT-LLM (1.2 and newer) runs it with its own Nemotron-Flash class, named by
`model_factory` in `{recipe}`.

**Give the directory as an absolute path:** a relative one with a single slash is taken for a Hub id.

Tensor names, shapes and fields were checked against what that class reads when this bundle was written; the GPU runtime
was not run. Issue 14013 of NVIDIA/TensorRT-LLM (May 2026) lists a released model of this class as broken in AutoDeploy:
see its state for your version, and compare a few answers with the Hugging Face directory's.

## Serve

```bash
trtllm-serve "$PWD" --backend _autodeploy --trust_remote_code --config {recipe}
```

Older releases spell the last option `--extra_llm_api_options {recipe}`.

## Measure throughput

```bash
trtllm-bench --model nemotron-flash --model_path "$PWD" throughput --dataset requests.jsonl \\
    --backend _autodeploy --extra_llm_api_options {recipe}
```

## Memory tokens: the caller prepends them

The model was trained with {num_meta_tokens} learned memory tokens before every sequence. They are the token ids from
{vocab_size} on, and they are never generated. The tokenizer in this directory does not know them, and the one that
TensorRT-LLM builds around it prepends them under transformers 4.57 but not under 5.x. Sending token ids is right with
every version:

```python
memory_ids = list(range({vocab_size}, {vocab_size} + {num_meta_tokens}))
prompt_ids = memory_ids + tokenizer("The").input_ids  # tokenizer: PreTrainedTokenizerFast.from_pretrained
```

Send `prompt_ids` as the `prompt` of `/v1/completions`, or to `LLM.generate` with `skip_tokenizer_init: true`. A request
costs {num_meta_tokens} more tokens of length and cache: `max_seq_len` in `{recipe}` counts them and leaves {context}
for prompt and answer.

## Notes for this model

{notes}
"""

"""A TensorRT-LLM AutoDeploy bundle made from a Hugging Face export: same weights, serving recipes, the commands."""

from pathlib import Path

import yaml

from flashslm.config import WeightFormat
from flashslm.export.autodeploy import LATER_RECIPE_FILE, RECIPE_FILE, serving_recipes
from flashslm.export.files import link_or_copy, read_json, whole_directory, write_json
from flashslm.export.hf_config import (
    CONFIG_CLASS,
    ConfigMismatch,
    architecture_from_config,
    config_problems,
    served_weights,
)
from flashslm.export.huggingface import ExportSummary, summarize
from flashslm.export.model_code import MODELING_FILE
from flashslm.models.architecture import Architecture


def export_tensorrt_llm(huggingface_dir: Path, directory: Path, max_batch_size: int = 64) -> ExportSummary:
    """Write the bundle whole or not at all; weights are hard links to the export's where the file system allows it.

    The class to run is TensorRT-LLM's own, so the modeling file stays behind. Raises ConfigMismatch when the source
    directory is not one of our exports.
    """
    config = read_json(huggingface_dir / "config.json")
    if problems := config_problems(config):
        raise ConfigMismatch(f"'{huggingface_dir}' is not an export: {'; '.join(problems)}")
    architecture = architecture_from_config(config)
    rewritten = {"config.json", "README.md", MODELING_FILE}
    with whole_directory(directory) as temporary:
        for source in sorted(huggingface_dir.iterdir()):
            if source.name not in rewritten:
                link_or_copy(source, temporary / source.name)
        write_json(temporary / "config.json", config | {"auto_map": {"AutoConfig": CONFIG_CLASS}})
        for file, recipe in serving_recipes(architecture, max_batch_size).items():
            (temporary / file).write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
        readme = _readme(architecture, config["dtype"], served_weights(config))
        (temporary / "README.md").write_text(readme, encoding="utf-8")
        return summarize(architecture, config["dtype"], temporary, directory)


def deployment_notes(architecture: Architecture, dtype: str, weights: WeightFormat = "full") -> list[str]:
    """What may not run, not run fast or not as it was judged on TensorRT-LLM's GPU kernels."""
    a = architecture
    found = {
        f"weights are {dtype}: the kernels are built for bfloat16 (export.dtype)": dtype != "bfloat16",
        _INT8_NOTE.format(dtype=dtype): weights == "int8",
        f"head size {a.head_dim}: FlashInfer attention wants 64 or 128": "A" in a.operators
        and a.head_dim not in (64, 128),
        f"head size {a.head_dim}: the delta rule's kernel takes at most 256": "D" in a.operators and a.head_dim > 256,
        "no attention layer: a model without a KV cache is not tried in AutoDeploy": "A" not in a.operators,
        f"Mamba-2 state {a.mamba_state} and head {a.mamba_head_dim}: powers of two are expected": "M" in a.operators
        and (a.mamba_state.bit_count() > 1 or a.mamba_head_dim.bit_count() > 1),
    }
    return [note for note, applies in found.items() if applies]


def _readme(architecture: Architecture, dtype: str, weights: WeightFormat) -> str:
    a = architecture
    facts = {
        "digest": a.digest,
        "recipe": RECIPE_FILE,
        "later_recipe": LATER_RECIPE_FILE,
        "vocab_size": a.vocab_size,
        "num_meta_tokens": a.num_meta_tokens,
        "context": a.max_position_embeddings - a.num_meta_tokens,
        "notes": "\n".join(f"- {note}" for note in deployment_notes(a, dtype, weights) or ["none"]),
    }
    memory = _MEMORY_TOKENS if a.num_meta_tokens else _NO_MEMORY_TOKENS
    return (_COMMANDS + memory + _NOTES).format(**facts)


_INT8_NOTE = (
    "served_weights in config.json is int8, which is for `flashslm serve`: of quantised weights AutoDeploy reads FP8, "
    "NVFP4 and INT4, none of 8-bit integers, so it runs the weights of this directory, in {dtype}, as they were before "
    "rounding"
)
_COMMANDS = """# TensorRT-LLM AutoDeploy bundle

TensorRT-LLM 1.2 runs it with its own Nemotron-Flash class, which the recipe's `model_factory` names; 1.2.1 is the
release to take. Architecture digest: `{digest}`

| TensorRT-LLM | recipe |
|---|---|
| 1.2.x | `{recipe}` |
| pre-releases from 1.3 on that have AutoDeploy | `{later_recipe}` |

The later ones read the batch sizes of CUDA graphs from `cuda_graph_config` and refuse `cuda_graph_batch_sizes`.
AutoDeploy comes to an end: since June 2026 nothing is added to it (RFC 15638), it warns of its end since 1.3.0rc21,
and its removal was approved in September 2026 (PR 19028). A version without it does not run this directory.

**Give this directory as an absolute path**, as `$PWD` is: a relative one with a single slash is taken for a Hub id.
Run the commands below in this directory.

Tensor names, shapes and fields were checked against what that class reads when this bundle was written; the GPU
runtime was not run: compare a few answers with the Hugging Face directory's. Issue 14013 of NVIDIA/TensorRT-LLM (May
2026) lists a released model of this class as broken in AutoDeploy. Its cause: newer transformers refuse entries of
`layer_types` that they do not know, as that model's configuration class gives them. The class in this directory gives
them in a way that is accepted; it loads with 4.57.1, 5.0.0, 5.3.0, 5.5.4, 5.6.0 and 5.23.0.

## Serve

```bash
trtllm-serve "$PWD" --backend _autodeploy --trust_remote_code --config {recipe}
```

Older releases spell the last option `--extra_llm_api_options {recipe}`, which newer ones take too.

## Measure throughput

```bash
trtllm-bench --model nemotron-flash --model_path "$PWD" throughput --dataset requests.jsonl \\
    --backend _autodeploy --extra_llm_api_options {recipe}
```

A line of `requests.jsonl` is a request: `{{"task_id": 0, "input_ids": [...], "output_tokens": 128}}`.

## Try it from Python

```bash
python examples/auto_deploy/build_and_run_ad.py --model "$PWD" --args.yaml-extra "$PWD/{recipe}"
```

is a script of the TensorRT-LLM repository. The same with token ids:

```python
import pathlib, yaml
from tensorrt_llm import SamplingParams
from tensorrt_llm._torch.auto_deploy import LLM
from transformers import PreTrainedTokenizerFast

here = str(pathlib.Path.cwd())
tokenizer = PreTrainedTokenizerFast.from_pretrained(here)
llm = LLM(model=here, skip_tokenizer_init=True, **yaml.safe_load(open("{recipe}")))
memory_ids = list(range({vocab_size}, {vocab_size} + {num_meta_tokens}))
prompt_ids = memory_ids + tokenizer("The").input_ids
sampling = SamplingParams(max_tokens=32, end_id=tokenizer.eos_token_id, pad_id=tokenizer.pad_token_id)
print(tokenizer.decode(llm.generate(prompt_ids, sampling).outputs[0].token_ids))
```

The logits are the output table's product with the final hidden state; TensorRT-LLM does not divide them by the norms of
the table's rows, and neither did training.

"""
_MEMORY_TOKENS = """## Memory tokens: the caller prepends them

The model was trained with {num_meta_tokens} learned memory tokens before every sequence. They are the token ids from
{vocab_size} on, and they are never generated. The tokenizer in this directory does not know them. The one that
TensorRT-LLM builds around it is right under transformers 4.57.1; under 5.x it prepends no memory tokens, splits text
into single characters and decodes wrongly. So send token ids, `prompt_ids` above, and take token ids: by
`LLM.generate` with `skip_tokenizer_init`, as the `prompt` of `/v1/completions` with `"detokenize": false`, or as
`input_ids` of a benchmark's request. Decode what comes with the tokenizer in this directory.

A request costs {num_meta_tokens} more tokens of length and cache: `max_seq_len` in `{recipe}` counts them and leaves
{context} for prompt and answer.

"""
_NO_MEMORY_TOKENS = """## Length

This model has no memory tokens: `max_seq_len` in `{recipe}` leaves all {context} tokens for prompt and answer.

"""
_NOTES = """## Notes for this model

{notes}
"""

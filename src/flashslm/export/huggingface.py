"""A HybridLM as a Hugging Face directory that transformers loads with its own code and TensorRT-LLM reads."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict

from flashslm.config import ExportConfig, WeightFormat
from flashslm.export.files import whole_directory, write_json
from flashslm.export.hf_config import config_from_architecture
from flashslm.export.model_card import training_data, with_header
from flashslm.export.model_code import CONFIGURATION_FILE, MODELING_FILE, TEMPLATES
from flashslm.export.tokenizer import write_tokenizer
from flashslm.export.weights import has_unit_rows, output_row_norms, write_weights
from flashslm.models.accounting import parameters
from flashslm.models.architecture import Architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS, LABELS


class ExportSummary(BaseModel):
    """What an export wrote: bytes by file name, the model's identity, the L2 norms of the output table's rows."""

    model_config = ConfigDict(frozen=True)

    directory: str
    architecture_digest: str
    dtype: str
    num_parameters: int
    num_bytes: int
    output_row_norm_min: float
    output_row_norm_max: float
    files: dict[str, int]


def export_huggingface(
    model: HybridLM,
    tokenizer_dir: Path,
    directory: Path,
    config: ExportConfig,
    dataset: Mapping[str, Any] | None = None,
    weights: WeightFormat = "full",
) -> ExportSummary:
    """Write the whole directory, or nothing. `dataset` is the summary of the training data, for the model card.

    Weights are stored in `config.dtype` and changed in no other way; what our engine is to round them to, `weights`, is
    a field of config.json. Raises InfeasibleArchitecture for what the format
    cannot hold (`hf_config.export_problems`), ValueError for a tokenizer that does not fit, FileExistsError when the
    directory has content.
    """
    architecture = model.architecture
    with whole_directory(directory) as temporary:
        text_tokens = architecture.max_position_embeddings - architecture.num_meta_tokens
        ids = write_tokenizer(tokenizer_dir, temporary, architecture.vocab_size, text_tokens)
        write_json(temporary / "config.json", config_from_architecture(architecture, config.dtype, ids, weights))
        write_json(temporary / "generation_config.json", ids)
        for name in (CONFIGURATION_FILE, MODELING_FILE):
            shutil.copyfile(TEMPLATES / name, temporary / name)
        write_weights(model, temporary, getattr(torch, config.dtype), config.max_shard_bytes)
        card = with_header(_readme(architecture, config.dtype, temporary, dataset, weights), config.license)
        (temporary / "README.md").write_text(card, encoding="utf-8")
        return summarize(architecture, config.dtype, temporary, directory)


def summarize(architecture: Architecture, dtype: str, written: Path, directory: Path) -> ExportSummary:
    """Sum up the files in `written` for an export that will stand at `directory`."""
    files = {path.name: path.stat().st_size for path in sorted(written.iterdir())}
    low, high = output_row_norms(written)
    return ExportSummary(
        directory=str(directory),
        architecture_digest=architecture.digest,
        dtype=dtype,
        num_parameters=parameters(architecture)["total"],
        num_bytes=sum(files.values()),
        output_row_norm_min=low,
        output_row_norm_max=high,
        files=files,
    )


def _readme(
    architecture: Architecture, dtype: str, written: Path, dataset: Mapping[str, Any] | None, weights: WeightFormat
) -> str:
    a = architecture
    counts = {LABELS[letter]: a.operators.count(letter) for letter in EXPORTABLE_OPERATORS if letter in a.operators}
    low, high = output_row_norms(written)
    facts = {
        "parameters": f"{parameters(a)['total']:,} (embedding counted once: it is also the head)",
        "operators": f"`{a.operators}` (" + ", ".join(f"{count} {name}" for name, count in counts.items()) + ")",
        **_sizes(a),
        "vocabulary": f"{a.vocab_size}",
        "memory (meta) tokens": f"{a.num_meta_tokens}",
        "context": f"{a.max_position_embeddings - a.num_meta_tokens} text tokens after the memory tokens",
        "weights": dtype if weights == "full" else f"{dtype}, served in 8 bits (below)",
        "row norms of the output table": f"{low:.4f} to {high:.4f}",
        "architecture digest": f"`{a.digest}`",
    }
    table = "\n".join(f"| {name} | {value} |" for name, value in facts.items())
    norms = _UNIT_ROWS if has_unit_rows(low, high) else _OTHER_ROWS
    text_tokens = a.max_position_embeddings - a.num_meta_tokens
    return _README.format(
        table=table,
        row_norms=norms,
        training_data=training_data(dataset),
        text_tokens=text_tokens,
        int8=_INT8.format(dtype=dtype) if weights == "int8" else "",
    )


def _sizes(a: Architecture) -> dict[str, str]:
    """Those that the operators of this architecture have."""
    sizes = {"hidden size": f"{a.hidden_size}"}
    if "F" in a.operators:
        sizes["FFN width"] = f"{a.ffn_size}"
    if "D" in a.operators:
        sizes["DeltaNet heads / head size"] = f"{a.num_heads} / {a.head_dim}"
    if "A" in a.operators:
        sizes["attention heads / key-value heads / head size"] = f"{a.num_heads} / {a.num_kv_heads} / {a.head_dim}"
        sizes["rotary base"] = f"{a.rotary_theta:.6g} ({a.rope_type})"
        sizes["query-key norm"] = "RMSNorm of each head" if a.qk_norm else "none"
    if "M" in a.operators:
        sizes["Mamba-2 inner / heads / state"] = f"{a.mamba_inner} / {a.mamba_heads} / {a.mamba_state}"
    return sizes


_UNIT_ROWS = "All rows are unit vectors here, so such code computes the same."
_OTHER_ROWS = "Not all rows are unit vectors here, so such code computes other logits: run this model with this code."
_INT8 = """
## Weights of 8 bits

This model was measured and judged with weights of 8 bits: the matrices, the embedding included, as whole numbers from
-127 to 127 with one scale per row. `served_weights` in `config.json` says so: `flashslm serve` and `flashslm generate`
round the weights when they load them, unless `--weights full` is given. The files hold them as they were before, in
{dtype}, and that is what transformers, vLLM and TensorRT-LLM run, at the speed and with the answers of {dtype}: none of
them takes this format from a directory by itself.
"""
_README = """# Hybrid language model

| | |
|---|---|
{table}

Every layer is `x + operator(RMSNorm(x))`; the notation is D DeltaNet, M Mamba-2, A attention, F feed-forward.

## Intended use

Continuing text of the kind it was trained on, where latency per token matters; research on hybrid architectures. It was
not tuned to follow instructions or to refuse any, and what it says is not checked: hold it to your own tests before
others read its output. No more than {text_tokens} tokens of text fit, a limit of the format: texts longer than the
sequences it was trained on have not been tested.

## Training data

{training_data}

## Load it

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained(path, trust_remote_code=True, dtype="auto")
inputs = tokenizer("The", return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=32)[0], skip_special_tokens=True))
```

`path` is this directory. transformers 4.57 and 5 load it.

## Serve it

On one machine `flashslm serve PATH` answers by OpenAI's API with this project's own decoder, and `flashslm generate
--model PATH --prompt TEXT` continues one text; PATH is this directory. The `tensorrt_llm/` directory that is exported
beside this one is for TensorRT-LLM: its own README.md has the commands, and what to mind.

For vLLM 0.22 there is a plug-in, which `pip install PROJECT PROJECT/plugins/vllm` brings (PROJECT is a checkout of
flashslm). `docs/vllm.md` there says what it supports and how fast it is.

```bash
vllm serve PATH
```
{int8}
## Notes

- The tokenizer puts the end-of-text token before every text, as every document began with it in training.
- The memory tokens are learned vectors that this code puts before every sequence; the tokenizer does not know them.
  `max_position_embeddings` counts them; `config.n_positions` and the tokenizer's `model_max_length` do not.
- Logits are the product with the output table, as in training: neither this code nor TensorRT-LLM divides them by the
  norms of the table's rows. The code that published models of this format carry does.
  {row_norms}
- Padding on either side is exact, given an attention mask.
- lm-evaluation-harness: `lm_eval --model hf --model_args pretrained=path,trust_remote_code=True`; for tasks that score
  whole texts (rolling log-likelihood) add `add_bos_token=False`, or the end-of-text token in front is scored too.
"""

"""What this plug-in does not support in vLLM, said before anything is loaded. No torch and no vLLM here."""

from typing import Any

from flashslm.models.architecture import Architecture

MAX_DELTA_HEAD_DIM = 256  # of vLLM's chunked delta rule


def setting_problems(settings: Any, architecture: Architecture) -> list[str]:
    """Why these settings (a `vllm.config.VllmConfig`) cannot serve this architecture, one line per reason."""
    model, cache, parallel = settings.model_config, settings.cache_config, settings.parallel_config
    tensor, pipeline, keys = parallel.tensor_parallel_size, parallel.pipeline_parallel_size, str(cache.cache_dtype)
    checks = (
        (tensor != 1, f"--tensor-parallel-size {tensor}: {_ONE_GPU}"),
        (pipeline != 1, f"--pipeline-parallel-size {pipeline}: {_ONE_GPU}"),
        (model.quantization is not None, f"--quantization {model.quantization}: weights are taken as exported"),
        (keys.startswith(("fp8", "int8")), f"--kv-cache-dtype {keys}: an export has no scales for keys and values"),
        (cache.enable_prefix_caching, "--enable-prefix-caching: recurrent states are not kept by prefix"),
        (model.enable_prompt_embeds, "--enable-prompt-embeds: a prompt is text or token ids"),
        (settings.speculative_config is not None, "--speculative-config: a recurrent state has no way back"),
    )
    problems = [problem for wrong, problem in checks if wrong]
    if {"D", "M"} <= set(architecture.operators) and "A" not in architecture.operators:
        # It then puts both in one group, and starts Mamba-2's decode kernel only for a group of Mamba-2 layers.
        problems.append("DeltaNet and Mamba-2 layers without an attention layer: vLLM 0.22 cannot run them together")
    return problems + _delta_rule_problems(settings, architecture)


_ONE_GPU = "the layers are not split over GPUs, use 1"


def _delta_rule_problems(settings: Any, a: Architecture) -> list[str]:
    if "D" not in a.operators:
        return []
    problems = []
    if str(settings.model_config.dtype).endswith("float32"):
        problems.append("--dtype float32: vLLM's delta rule takes half precision, use --dtype bfloat16")
    if a.head_dim > MAX_DELTA_HEAD_DIM:
        problems.append(f"head size {a.head_dim}: vLLM's delta rule takes at most {MAX_DELTA_HEAD_DIM}")
    additional = settings.additional_config
    if isinstance(additional, dict) and additional.get("gdn_prefill_backend", "auto") not in ("auto", "triton"):
        problems.append(
            f"gdn_prefill_backend {additional['gdn_prefill_backend']}: this plug-in uses triton, leave it out"
        )
    return problems

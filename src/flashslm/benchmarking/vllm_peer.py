"""Greedy decoding in vLLM's offline engine with random weights: Qwen3, or our own model by the plug-in.

The engine runs in this process and is stepped by hand, so that a step of the clock is a step of the engine. Its host
work between steps counts: the engine's user waits for it too. vLLM schedules a step while the one before runs, so
what a step returns are the tokens of the step before.
"""

import os
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flashslm.benchmarking.case import Case
from flashslm.benchmarking.qwen3_shape import qwen3_config
from flashslm.export.files import write_json
from flashslm.export.hf_config import TOKEN_IDS, config_from_architecture

DEFAULT_ATTENTION = "FLASH_ATTN"
PLUGIN = "flashslm"  # the entry point's name in vllm.general_plugins
MEMORY_SHARE = 0.9  # of the memory that is free: this process holds some already
STEP_TOKENS = 1 << 16  # what a step reads at most of several prompts: an MLP's values then fit 32-bit offsets


class VllmDecoder:
    """Prompts and batches up to the case's sizes.

    Each prefill ends the sequences of the one before. No prefix is cached, and a prompt is read in one step. Prompts of
    more than STEP_TOKENS together are read in several steps, in which those read first get their next tokens.
    """

    def __init__(self, case: Case) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # read when vLLM is imported
        attention = os.environ.get("VLLM_ATTENTION_BACKEND", DEFAULT_ATTENTION)  # vLLM itself reads it only up to 0.13
        import vllm

        prompt_tokens = case.architecture.num_meta_tokens + case.context  # the plug-in puts meta tokens before each
        step_tokens = max(prompt_tokens + 1, min(case.batch * (prompt_tokens + 1), STEP_TOKENS))
        prefill_steps = -(-case.batch * prompt_tokens // step_tokens)
        new_tokens = case.capacity - case.context + prefill_steps
        with tempfile.TemporaryDirectory() as directory:
            self.write_config(case, Path(directory))
            self.llm = vllm.LLM(
                model=directory,
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=case.dtype,
                max_model_len=prompt_tokens + new_tokens,
                max_num_seqs=case.batch,
                max_num_batched_tokens=step_tokens,
                enable_prefix_caching=False,
                attention_config={"backend": attention},
                **_memory(case),
            )
        self.sampling = vllm.SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False)
        self.numbers = count()
        self.requests: list[str] = []
        self.engine = (
            f"vllm {vllm.__version__} ({self.model}offline engine in one process, {attention}, random weights)"
        )

    model = ""  # what the engine's name says of the model

    def write_config(self, case: Case, directory: Path) -> None:
        """The config.json of the case's shape."""
        config = qwen3_config(case.architecture)
        config.architectures = ["Qwen3ForCausalLM"]
        config.save_pretrained(directory)

    def prefill(self, tokens_BT: Tensor) -> Tensor:
        """Start again on prompts; the first tokens [B]."""
        core = self.llm.llm_engine
        core.abort_request(self.requests)
        self.requests = [str(next(self.numbers)) for _ in tokens_BT]
        for name, tokens in zip(self.requests, tokens_BT.tolist(), strict=True):
            core.add_request(name, {"prompt_token_ids": tokens}, self.sampling)
        first: dict[str, int] = {}
        while len(first) < len(self.requests):
            first |= {output.request_id: output.outputs[0].token_ids[0] for output in core.step() if _has_begun(output)}
        return torch.tensor([first[name] for name in self.requests])

    def advance(self) -> None:
        """One decode step; returns when its tokens are on the host."""
        self.llm.llm_engine.step()


class PluginDecoder(VllmDecoder):
    """The case's own architecture, as exported and served by the plug-in."""

    model = "flashslm-vllm, "

    def write_config(self, case: Case, directory: Path) -> None:
        ids = dict.fromkeys(TOKEN_IDS, 0)
        write_json(directory / "config.json", config_from_architecture(case.architecture, case.dtype, ids))


def _memory(case: Case) -> dict[str, float]:
    """vLLM's default is a share of all memory, and refuses to start where not as much is free."""
    if case.device != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info()
    return {"gpu_memory_utilization": MEMORY_SHARE * free / total}


def _has_begun(output: Any) -> bool:
    return len(output.outputs[0].token_ids) > 0

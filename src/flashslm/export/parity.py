"""Proof that an exported directory is the trained model: equal logits, equal greedy tokens."""

import copy
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch

from flashslm.export.files import read_json
from flashslm.inference.engine import DecodeEngine
from flashslm.models.hybrid import HybridLM


class ParityError(RuntimeError):
    """The exported model does not compute what the trained one does; the message has the numbers."""


@dataclass(frozen=True)
class Parity:
    """Largest difference of a logit (float32, over `num_tokens` tokens) and the number of equal greedy tokens."""

    max_abs_difference: float
    tolerance: float
    num_tokens: int
    greedy_tokens: int


def check_parity(model: HybridLM, directory: Path, tokens_BT: torch.Tensor, tolerance: float) -> Parity:
    """Reload `directory` with transformers and compare it with `model` on the CPU in float32.

    Logits over `tokens_BT`, then greedy decoding of T/2 tokens after the first T/2: `generate` with its cache against
    DecodeEngine. A bfloat16 export has rounded weights, so the trained model's weights are rounded the same way first.
    Raises ParityError.
    """
    dtype = getattr(torch, read_json(directory / "config.json")["dtype"])
    reference = copy.deepcopy(model).to("cpu", dtype).float().eval()
    tokens_BT = tokens_BT.cpu()
    prompt_BT = tokens_BT[:, : max(1, tokens_BT.shape[1] // 2)]
    new_tokens = max(1, tokens_BT.shape[1] - prompt_BT.shape[1])
    with torch.no_grad(), reloaded(directory) as exported:
        expected = reference.logits(reference(tokens_BT))
        difference = (exported(tokens_BT).logits - expected).abs().max().item()
        if not difference <= tolerance:
            raise ParityError(f"logits of '{directory}' are off by {difference:.3g}, allowed is {tolerance:.3g}")
        # A mask, since generate would take the pad token for padding, and documents begin with it.
        generated = exported.generate(
            prompt_BT,
            attention_mask=torch.ones_like(prompt_BT),
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=None,
        )
    engine = DecodeEngine(reference, batch_size=len(prompt_BT), max_context=tokens_BT.shape[1])
    decoded = engine.generate(prompt_BT, max_new_tokens=new_tokens)
    differing = (generated[:, prompt_BT.shape[1] :] != decoded).sum().item()
    if differing:
        raise ParityError(f"{differing} of {decoded.numel()} greedy tokens of '{directory}' differ from DecodeEngine's")
    return Parity(difference, tolerance, tokens_BT.numel(), decoded.numel())


@contextmanager
def reloaded(directory: Path) -> Iterator[Any]:
    """The directory's model by AutoModelForCausalLM in float32, its code imported into a separate module cache."""
    from transformers import AutoModelForCausalLM, dynamic_module_utils

    with (
        tempfile.TemporaryDirectory() as cache,
        mock.patch.object(dynamic_module_utils, "HF_MODULES_CACHE", cache),
        mock.patch.object(sys, "path", [cache, *sys.path]),
    ):
        others = _take_remote_modules()
        try:
            with _without_bars():
                model = AutoModelForCausalLM.from_pretrained(directory, trust_remote_code=True, dtype=torch.float32)
            yield model.eval()
        finally:
            _take_remote_modules()
            sys.modules.update(others)


@contextmanager
def _without_bars() -> Iterator[None]:
    """No progress bars of transformers: in a step's log each of their states is a line."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _take_remote_modules() -> dict[str, ModuleType]:
    """Remove and return the imported code of all exported models: a package found in one cache hides the others."""
    names = [name for name in sys.modules if name.split(".")[0] == "transformers_modules"]
    return {name: sys.modules.pop(name) for name in names}

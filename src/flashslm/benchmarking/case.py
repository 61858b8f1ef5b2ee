"""What is measured: a model, its sizes and the machine's part in it, checked before anything is built."""

from dataclasses import dataclass
from typing import Literal

import torch

from flashslm.config import WeightFormat
from flashslm.hardware import DeviceKind
from flashslm.inference.fused.tilings import MAX_BATCH
from flashslm.models.accounting import decode_bytes_per_token, prefill_flops
from flashslm.models.architecture import Architecture

WARM_UP_STEPS = 5  # after them nothing is compiled, recorded or allocated any more


@dataclass(frozen=True)
class Case:
    """`batch` sequences from `context` text tokens on, for `new_tokens` decode steps after the first token.

    ValueError names every size that does not fit.
    """

    preset: str
    architecture: Architecture
    context: int
    new_tokens: int
    batch: int
    device: DeviceKind
    dtype: Literal["float32", "bfloat16"]
    repeats: int = 3
    weights: WeightFormat = "full"

    def __post_init__(self) -> None:
        sizes = {name: getattr(self, name) for name in ("context", "new_tokens", "batch", "repeats")}
        problems = [f"{name} is {value}: at least 1" for name, value in sizes.items() if value < 1]
        a = self.architecture
        text_positions = a.max_position_embeddings - a.num_meta_tokens
        if not problems and self.last_context > text_positions:
            problems.append(
                f"context {self.context} and {self.new_tokens} new tokens are beyond the {text_positions} "
                f"text positions of '{self.preset}': together they may be at most that"
            )
        if problems:
            raise ValueError("; ".join(problems))

    @property
    def torch_dtype(self) -> torch.dtype:
        return {"float32": torch.float32, "bfloat16": torch.bfloat16}[self.dtype]

    @property
    def last_context(self) -> int:
        """Text tokens that a sequence has after the last step."""
        return self.context + self.new_tokens

    @property
    def capacity(self) -> int:
        """Text tokens that a cache must hold."""
        return self.context + max(self.new_tokens, WARM_UP_STEPS)

    @property
    def mean_context(self) -> int:
        """Text tokens in the cache at the middle decode step."""
        return self.context + self.new_tokens // 2

    @property
    def prefill_flops(self) -> float:
        """What the prompts take up to their first tokens; the meta tokens are not read again."""
        return self.batch * prefill_flops(self.architecture, self.context)

    @property
    def bytes_per_token(self) -> float:
        """What a mean decode step must move: weights once, caches and states of every sequence."""
        a = self.architecture
        attended, bytes_per_value = a.num_meta_tokens + self.mean_context, self.torch_dtype.itemsize
        return decode_bytes_per_token(a, attended, self.batch, bytes_per_value, 1 if self.reads_int8 else None)

    @property
    def reads_int8(self) -> bool:
        """Whether a step's weights have 8 bits where it reads them: many sequences read matrices as they are."""
        return self.weights == "int8" and self.device == "cuda" and self.batch <= MAX_BATCH


def prompts(case: Case) -> torch.Tensor:
    """Random prompts [B, context] on the host."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(case.architecture.vocab_size, (case.batch, case.context), generator=generator)

"""Architecture: an operator sequence plus the sizes all its layers share. No torch here.

Notation: one letter per operator (`operator_spec`). Blanks are free, `(DFMF AFMF)x2` repeats, `|` separates stages and
carries no meaning for the model.
"""

import re
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from flashslm.config import ModelConfig, digest
from flashslm.models.operator_spec import MIXERS, OPERATOR_SPECS, OPERATORS

MAX_OPERATORS = 4096  # of a model


class InfeasibleArchitecture(ValueError):
    """An architecture that cannot be built, priced or exported; the message says why."""


_LEGEND = ", ".join(f"{letter} ({spec.name})" for letter, spec in OPERATOR_SPECS.items())


def parse_operators(notation: str) -> str:
    """Expand notation such as `(DFMF AFMF)x2 | (DFMF)x2` to the plain operator string `DFMFAFMF…`."""
    text = re.sub(r"[\s|]", "", notation[: MAX_OPERATORS + 1])
    repeated = re.compile(r"\(([A-Z]+)\)(?:x(\d+))?")
    while "(" in text and len(text) <= MAX_OPERATORS:
        text, count = repeated.subn(lambda m: m[1] * _repeats(m[2] or "1"), text)
        if not count:
            break
    if max(len(text), len(notation)) > MAX_OPERATORS:
        raise InfeasibleArchitecture(f"operators '{notation[:40]}…': more than {MAX_OPERATORS} of them")
    wrong = sorted(set(text) - set(OPERATORS))
    if wrong or not text:
        raise InfeasibleArchitecture(
            f"operators '{notation}': {'unknown ' + ' '.join(wrong) if wrong else 'empty'}; "
            f"allowed are {_LEGEND}, e.g. '(DFMF AFMF)x2 | (DFMF)x2'; sizes are the model's, not a layer's"
        )
    return text


def _repeats(digits: str) -> int:
    """At most one more than a model may have: what is too long is not made first."""
    return min(int(digits[:5]), MAX_OPERATORS + 1)


def repeat_block(block: str, depth: int) -> str:
    """Repeat a block to `depth` token mixers; a last block that would have too many ends before its first surplus one.

    The block "DFMF" has two mixers: depth 4 is DFMFDFMF, depth 3 is DFMFDF.
    """
    operators = parse_operators(block)
    mixers = sum(operator in MIXERS for operator in operators)
    if not mixers:
        raise InfeasibleArchitecture(f"block '{block}' has no token mixer ({', '.join(MIXERS)}): depth counts mixers")
    repeated = operators * -(-depth // mixers)
    starts = [index for index, operator in enumerate(repeated) if operator in MIXERS]
    return repeated[: starts[depth]] if depth < len(starts) else repeated


class Architecture(BaseModel):
    """Everything that decides a model's tensors. Frozen and hashable; `digest` is its identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    operators: str
    hidden_size: int = Field(ge=8)
    num_heads: int = Field(ge=1)  # attention query heads and heads of the linear mixers
    num_kv_heads: int = Field(ge=1)
    head_dim: int = Field(ge=2)  # hidden_size / num_heads where it is left out
    ffn_size: int = Field(ge=1)
    mamba_state: int = Field(ge=1)
    mamba_head_dim: int = Field(ge=1)
    mamba_expand: int = Field(ge=1)
    vocab_size: int = Field(ge=2)
    num_meta_tokens: int = Field(ge=0)
    max_position_embeddings: int = Field(ge=1)
    rope_theta: float = Field(gt=0)
    rope_type: Literal["default", "ntk"] = "default"  # ntk: theta is raised once, for the longest context
    original_max_position_embeddings: int = Field(default=0, ge=0)  # rope_type=ntk
    norm_eps: float = Field(gt=0)
    qk_norm: bool = False  # attention: RMSNorm over each head of q and k, before the rotation
    window: int = Field(default=512, ge=1)  # keys a query of window attention sees, its own among them

    @model_validator(mode="before")
    @classmethod
    def _default_head_dim(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("num_heads") and "head_dim" not in values:
            values = values | {"head_dim": int(values.get("hidden_size", 0)) // int(values["num_heads"])}
        return values

    @field_validator("operators")
    @classmethod
    def _plain(cls, value: str) -> str:
        return parse_operators(value)

    @model_validator(mode="after")
    def _sizes_fit(self) -> "Architecture":
        problems = []
        if self.head_dim == self.hidden_size // self.num_heads and self.hidden_size % self.num_heads:
            problems.append(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}")
        if self.head_dim % 2:
            problems.append(f"head size {self.head_dim} is odd: rotary embedding needs an even one")
        if self.rope_type == "ntk" and self.head_dim == 2:
            problems.append("rope_type ntk with head size 2: the one angle it has is not stretched, use default")
        if self.rope_type == "ntk" and not 0 < self.original_max_position_embeddings <= self.max_position_embeddings:
            problems.append(
                f"rope_type ntk with original_max_position_embeddings {self.original_max_position_embeddings}: "
                f"give the length before the extension to {self.max_position_embeddings}"
            )
        if self.num_heads % self.num_kv_heads:
            problems.append(f"num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.mamba_inner % self.mamba_head_dim:
            problems.append(f"mamba inner size {self.mamba_inner} is not a multiple of {self.mamba_head_dim} (head)")
        if problems:
            raise InfeasibleArchitecture("; ".join(problems))
        return self

    @property
    def heads_size(self) -> int:
        """Channels of all query heads together."""
        return self.num_heads * self.head_dim

    @property
    def gla_key_dim(self) -> int:
        """Key channels of a GLA head: half as many as its value channels."""
        return self.head_dim // 2

    @property
    def rotary_theta(self) -> float:
        """The base of the rotary angles: rope_theta, or ntk's theta·(2·longest/original - 1)^(d/(d-2))."""
        if self.rope_type == "default":
            return self.rope_theta
        stretch = 2 * self.max_position_embeddings / self.original_max_position_embeddings - 1
        return float(self.rope_theta * stretch ** (self.head_dim / (self.head_dim - 2)))

    @property
    def mamba_inner(self) -> int:
        return self.mamba_expand * self.hidden_size

    @property
    def mamba_heads(self) -> int:
        return self.mamba_inner // self.mamba_head_dim

    @property
    def mamba_conv_channels(self) -> int:
        return self.mamba_inner + 2 * self.mamba_state

    @property
    def mamba_projected_rows(self) -> int:
        """Of the input projection: z, what the convolution takes (x, B, C), and dt."""
        return self.mamba_inner + self.mamba_conv_channels + self.mamba_heads

    @property
    def digest(self) -> str:
        return digest(self.model_dump(mode="json"))


def make_architecture(**fields: Any) -> Architecture:
    """An Architecture from its fields. Raises InfeasibleArchitecture with every reason, in one line."""
    try:
        return Architecture.model_validate(fields)
    except ValidationError as error:
        problems = [(".".join(map(str, e["loc"])), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
    raise InfeasibleArchitecture("; ".join(f"{where}: {what}" if where else what for where, what in problems))


def build_architecture(operators: str, width: int, sizes: ModelConfig, vocab_size: int) -> Architecture:
    """Derive every size from the width and a recipe's shared sizes.

    Head count is width / head_dim; the FFN width is floor(ratio·width / 128)·128 as in the export contract, at least
    128; key/value heads are the largest divisor of the head count that leaves groups of at least `kv_group`. Raises
    InfeasibleArchitecture for sizes that do not fit.
    """
    if width % sizes.head_dim:
        raise InfeasibleArchitecture(f"width {width} is not a multiple of model.head_dim {sizes.head_dim}")
    num_heads = width // sizes.head_dim
    wanted = max(1, num_heads // sizes.kv_group)
    return make_architecture(
        operators=operators,
        hidden_size=width,
        num_heads=num_heads,
        num_kv_heads=max(k for k in range(1, wanted + 1) if num_heads % k == 0),
        ffn_size=max(128, int(sizes.ffn_ratio * width) // 128 * 128),
        vocab_size=vocab_size,
        **sizes.model_dump(include=Architecture.model_fields.keys() & ModelConfig.model_fields.keys()),
    )

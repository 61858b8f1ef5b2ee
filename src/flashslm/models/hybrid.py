"""HybridLM: embedding, residual layers of one operator each, final norm, tied head; learned meta tokens in front.

The meta tokens stand at positions 0..M-1 before every text (before every document when texts are packed), so the
states they leave are the same for all: they are computed once a call at batch 1, with gradient, and expanded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flashslm.config import OutputInit
from flashslm.models.architecture import Architecture
from flashslm.models.cache import Cache, empty_state
from flashslm.models.compilation import compiled_in_training
from flashslm.models.initial_values import initial_value, output_scale
from flashslm.models.interface import Operator, Parts, Sequence
from flashslm.models.norm import RMSNorm
from flashslm.models.operator_spec import MIXERS, OPERATOR_SPECS
from flashslm.models.operators import build_operator
from flashslm.models.rope import Rotary, rotary
from flashslm.models.states import DecodePosition, NoState, State, expand_state
from flashslm.models.unit_vectors import UnitVectors, embedding_vectors, operator_vectors
from flashslm.ops.cross_entropy import linear_cross_entropy
from flashslm.ops.documents import positions_in_document
from flashslm.ops.precision import in_autocast_dtype

FP32_PARAMETERS = ("A_log", "dt_bias", "D")  # decays are too sensitive for bf16; they are tiny


class Layer(nn.Module):
    """x + operator(RMSNorm(x)). The operator is called `mixer`, or `ffn` for an FFN.

    Where it is `recomputed`, training keeps its input alone and runs it a second time for its gradient.
    """

    def __init__(self, architecture: Architecture, operator: str) -> None:
        super().__init__()
        self.norm = RMSNorm(architecture.hidden_size, architecture.norm_eps)
        self.operator_name = "mixer" if operator in MIXERS else "ffn"
        self.add_module(self.operator_name, build_operator(architecture, operator))
        self.recomputed = False

    @property
    def operator(self) -> Operator:
        return cast(Operator, self.get_submodule(self.operator_name))

    def forward(
        self, x_BTD: Tensor, meta_1MD: Tensor | None, text: Sequence, meta: Sequence
    ) -> tuple[Tensor, Tensor | None]:
        """Both streams at once, so that a layer's weights are gathered once when they are sharded."""
        if not (self.recomputed and torch.is_grad_enabled()):
            return self._streams(x_BTD, meta_1MD, text, meta)
        recomputed: tuple[Tensor, Tensor | None] = checkpoint(
            self._streams, x_BTD, meta_1MD, text, meta, use_reentrant=False, preserve_rng_state=False
        )
        return recomputed

    def _streams(
        self, x_BTD: Tensor, meta_1MD: Tensor | None, text: Sequence, meta: Sequence
    ) -> tuple[Tensor, Tensor | None]:
        if meta_1MD is None:
            return self.extend(x_BTD, None, text)[0], None
        if self.operator_name == "ffn":
            return self._transform_both(x_BTD, text.angles, meta_1MD, meta.angles)
        entered, entered_meta = self._enter_both(x_BTD, text.angles, meta_1MD, meta.angles)
        mixed_meta, state = self.operator.mix(entered_meta, None, meta)
        mixed, _ = self.operator.mix(entered, expand_state(state, x_BTD.shape[0]), text)
        return self._leave_both(x_BTD, mixed, meta_1MD, mixed_meta)

    def extend(self, x_BTD: Tensor, state: State | None, sequence: Sequence) -> tuple[Tensor, State]:
        """Run T tokens from a state; returns the stream and the state after them."""
        if self.operator_name == "ffn":
            return self._transform(x_BTD, sequence.angles), NoState()
        mixed, state = self.operator.mix(self._enter(x_BTD, sequence.angles), state, sequence)
        return self._leave(x_BTD, mixed), state

    def _transformed(self, x: Tensor, angles: Rotary) -> Tensor:
        operator = self.operator
        return x + operator.output(operator.project(self.norm(x), angles))

    def _entered(self, x: Tensor, angles: Rotary) -> Parts:
        return self.operator.project(self.norm(x), angles)

    def _left(self, x: Tensor, mixed: Parts) -> Tensor:
        return x + self.operator.output(mixed)

    _transform = compiled_in_training(_transformed)
    _enter = compiled_in_training(_entered)
    _leave = compiled_in_training(_left)

    # A part of both streams is one graph: fewer are compiled, and each weight is rounded once.

    @compiled_in_training
    def _transform_both(self, x: Tensor, angles: Rotary, meta: Tensor, meta_angles: Rotary) -> tuple[Tensor, Tensor]:
        return self._transformed(x, angles), self._transformed(meta, meta_angles)

    @compiled_in_training
    def _enter_both(self, x: Tensor, angles: Rotary, meta: Tensor, meta_angles: Rotary) -> tuple[Parts, Parts]:
        return self._entered(x, angles), self._entered(meta, meta_angles)

    @compiled_in_training
    def _leave_both(self, x: Tensor, mixed: Parts, meta: Tensor, mixed_meta: Parts) -> tuple[Tensor, Tensor]:
        return self._left(x, mixed), self._left(meta, mixed_meta)

    def step(self, x_BD: Tensor, state: State, position: DecodePosition) -> Tensor:
        """Run one token on a static state."""
        return x_BD + self.operator.step(self.norm(x_BD), state, position)


class HybridLM(nn.Module):
    """A causal language model over an `Architecture`; `build` makes one with initial weights."""

    def __init__(self, architecture: Architecture) -> None:
        super().__init__()
        self.architecture = architecture
        self.embedding = nn.Embedding(architecture.vocab_size, architecture.hidden_size)
        if architecture.num_meta_tokens:
            self.meta_tokens = nn.Parameter(torch.empty(architecture.num_meta_tokens, architecture.hidden_size))
        self.layers = nn.ModuleList(Layer(architecture, operator) for operator in architecture.operators)
        self.final_norm = RMSNorm(architecture.hidden_size, architecture.norm_eps)

    @classmethod
    def build(
        cls,
        architecture: Architecture,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        *,
        init_on_device: bool = False,
        output_init: OutputInit = "normal",
    ) -> HybridLM:
        """Make the model on `device` with initial weights; A_log, dt_bias and D stay fp32 in any dtype.

        With `init_on_device` the device draws the weights: faster, and the values depend on its kind. `output_init` is
        a recipe's model.output_init; the other parameters are the same under each.
        """
        with torch.device("meta"):
            model = cls(architecture)
        for module in model.modules():
            for name, parameter in list(module.named_parameters(recurse=False)):
                kept = torch.promote_types(dtype, torch.float32) if name in FP32_PARAMETERS else dtype
                module.register_parameter(name, nn.Parameter(torch.empty_like(parameter, device=device, dtype=kept)))
        model.init_weights(seed, device if init_on_device else "cpu")
        if output_init != "normal":
            model.scale_outputs_(output_scale(output_init, len(architecture.operators)))
        return model

    @torch.no_grad()
    def cast(self, dtype: torch.dtype) -> HybridLM:
        """This model with its parameters in `dtype`, but for those that are kept in fp32."""
        for name, parameter in self.named_parameters():
            kept = name.rpartition(".")[2] in FP32_PARAMETERS
            parameter.data = parameter.to(torch.promote_types(dtype, torch.float32) if kept else dtype)
        return self

    @torch.no_grad()
    def init_weights(self, seed: int, drawn_on: torch.device | str = "cpu") -> None:
        """Fill every parameter; what is drawn on the CPU depends on the seed alone, not on devices or threads."""
        generator = torch.Generator(drawn_on).manual_seed(seed)
        for name, parameter in self.named_parameters():
            parameter.copy_(initial_value(name, parameter.shape, generator))

    @torch.no_grad()
    def scale_outputs_(self, scale: float) -> None:
        """Multiply the matrices that write to the residual stream, in place."""
        for letter, layer in zip(self.architecture.operators, self.residual_layers, strict=True):
            for name in OPERATOR_SPECS[letter].writes:
                layer.operator.get_parameter(f"{name}.weight").mul_(scale)

    def forward(self, tokens_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Final-normed hidden states [B, T, D] of the text tokens."""
        x_BTD, meta_1MD = in_autocast_dtype(self.embedding(tokens_BT)), self._meta_stream()
        text, meta = self._text_sequence(tokens_BT, documents_BT), self._meta_sequence()
        for index, layer in enumerate(self.residual_layers):
            # After the last mixer nothing reads the meta tokens' stream.
            x_BTD, meta_1MD = layer(x_BTD, meta_1MD if index <= self._last_mixer else None, text, meta)
        hidden_BTD: Tensor = self.final_norm(x_BTD)
        return hidden_BTD

    def logits(self, hidden: Tensor) -> Tensor:
        """Tied head: [..., D] to [..., V]."""
        return nn.functional.linear(hidden, self.embedding.weight)

    def loss(self, tokens_BT: Tensor, targets_BT: Tensor, documents_BT: Tensor | None = None) -> Tensor:
        """Mean cross entropy in nats over targets other than -100."""
        hidden_BTD = self(tokens_BT, documents_BT)
        return linear_cross_entropy(hidden_BTD.flatten(0, 1), self.embedding.weight, targets_BT.flatten())

    @torch.no_grad()
    def prefix_states(self) -> list[State]:
        """The batch-1 states of every layer after the meta tokens; zero states without meta tokens."""
        a, meta_1MD = self.architecture, self._meta_stream()
        if meta_1MD is None:
            weight = self.embedding.weight
            return [empty_state(a, operator, 1, 0, weight.device, weight.dtype) for operator in a.operators]
        states: list[State] = []
        for layer in self.residual_layers:
            meta_1MD, state = layer.extend(meta_1MD, None, self._meta_sequence())
            states.append(state)
        return states

    @torch.no_grad()
    def extend(self, tokens_BT: Tensor, states: list[State], start: int) -> tuple[Tensor, list[State]]:
        """Run T tokens of text after `start` earlier ones, from the states that those and the meta tokens left.

        Final-normed hidden states [B, T, D], and the states after them; those before are left as they are.
        """
        positions = torch.arange(start, start + tokens_BT.shape[1], device=tokens_BT.device)
        sequence = Sequence(self._angles(positions + self.architecture.num_meta_tokens))
        x_BTD, after = self.embedding(tokens_BT), []
        for layer, state in zip(self.residual_layers, states, strict=True):
            x_BTD, state = layer.extend(x_BTD, state, sequence)
            after.append(state)
        return self.final_norm(x_BTD), after

    @torch.no_grad()
    def prefill(self, tokens_BT: Tensor, cache: Cache) -> Tensor:
        """Append T tokens to every sequence of the cache; logits [B, V] of the last. May be called again and again.

        Waits for the device to learn the cache's length. ValueError if the tokens do not fit.
        """
        return self.append(tokens_BT, cache, cache.common_length())

    @torch.no_grad()
    def append(self, tokens_BT: Tensor, cache: Cache, start: int, length: Tensor | None = None) -> Tensor:
        """`prefill` without a wait, where the caller knows that every sequence has `start` tokens.

        With `length` (int64 [1]) only so many of the tokens count, and the logits are of the last of those: the rest is
        padding, which every operator of the model has to take (`takes_padding`).
        """
        stop = start + tokens_BT.shape[1]
        if stop > cache.slots:
            raise ValueError(
                f"{stop - start} tokens after {start} exceed the cache's {cache.slots}: allocate a larger one"
            )
        sequence = Sequence(cache.angles_between(start, stop), length=length)
        x_BTD = self.embedding(tokens_BT)
        for index, layer in enumerate(self.residual_layers):
            x_BTD, state = layer.extend(x_BTD, cache.state(index, start), sequence)
            cache.store(index, state, start, stop)
        cache.lengths_B += stop - start if length is None else length
        last_BD = x_BTD[:, -1] if length is None else x_BTD.index_select(1, length - 1)[:, 0]
        return self.logits(self.final_norm(last_BD))

    @torch.no_grad()
    def decode_step(self, tokens_B: Tensor, cache: Cache) -> Tensor:
        """Append one token to every sequence; logits [B, V]. All state changes are in place, nothing waits.

        The caller keeps the lengths below the cache's slots.
        """
        x_BD, position = self.embedding(tokens_B), cache.next_position()
        for layer, state in zip(self.residual_layers, cache.layers, strict=True):
            x_BD = layer.step(x_BD, state, position)
        cache.lengths_B += 1
        return self.logits(self.final_norm(x_BD))

    def unit_vectors(self, axes: Mapping[str, str]) -> dict[str, UnitVectors]:
        """What weight normalisation covers, by parameter name; `axes` are a recipe's training.weight_norm_axes."""
        found = dict(embedding_vectors(axes))
        for index, (letter, layer) in enumerate(zip(self.architecture.operators, self.residual_layers, strict=True)):
            vectors = operator_vectors(self.architecture, letter, axes)
            found |= {f"layers.{index}.{layer.operator_name}.{name}": those for name, those in vectors}
        return found

    @property
    def residual_layers(self) -> list[Layer]:
        return cast(list[Layer], list(self.layers))

    @property
    def _last_mixer(self) -> int:
        return max((self.architecture.operators.rfind(mixer) for mixer in MIXERS), default=-1)

    def _meta_stream(self) -> Tensor | None:
        return in_autocast_dtype(self.meta_tokens[None]) if self.architecture.num_meta_tokens else None

    def _meta_sequence(self) -> Sequence:
        return Sequence(self._angles(torch.arange(self.architecture.num_meta_tokens, device=self._device)))

    def _text_sequence(self, tokens_BT: Tensor, documents_BT: Tensor | None) -> Sequence:
        if documents_BT is None:
            positions = torch.arange(tokens_BT.shape[1], device=tokens_BT.device)
        else:
            positions = positions_in_document(documents_BT)
        return Sequence(self._angles(positions + self.architecture.num_meta_tokens), documents_BT)

    def _angles(self, positions: Tensor) -> Rotary:
        return rotary(positions, self.architecture.head_dim, self.architecture.rotary_theta)

    @property
    def _device(self) -> torch.device:
        return self.embedding.weight.device

"""Prefill: prompts into a cache. On CUDA one graph per padded length, so that no prompt waits for the host.

A prompt is padded behind its end to one of a few lengths. Padding changes neither what comes before it nor the states:
DeltaNet's writes get the strength 0, Mamba-2's steps the size 0, a convolution's state is read where the prompt ends.
"""

import logging
from collections import deque

import torch
from torch import Tensor

from flashslm.models.cache import Cache
from flashslm.models.hybrid import HybridLM
from flashslm.models.operators import layer_class
from flashslm.models.states import State
from flashslm.ops.kernels import BACKENDS, backend_of

logger = logging.getLogger(__name__)
PREFILL_CHUNK = {"cpu": 512, "cuda": 8192}  # tokens; bounds what a long prompt needs besides its cache
GRAPH_TOKENS = 16_384  # of all rows, padding included: what is longer keeps the device busy without a graph
SMALLEST_STEP = 64  # tokens between two padded lengths
# What runs in a graph besides matrix products: forms in plain torch wait for the device or copy from the host.
GRAPH_OPERATIONS = {
    "D": ("delta_rule", "causal_conv"),
    "M": ("ssd", "causal_conv"),
    "A": ("attention", "rotary"),
    "F": (),
}


def padded_length(length: int) -> int:
    """The smallest length that prompts are padded to and that holds `length` tokens: four per octave from 256 on."""
    step = max(SMALLEST_STEP, 1 << max(0, (length - 1).bit_length() - 3))
    return -(-length // step) * step


class Prefill:
    """Starts the sequences of a cache again behind the meta tokens and reads prompts of one length into it.

    Short prompts are read at once, long ones in chunks (`begin`, then `advance` until it says that all is read). The
    first prompt of a padded length runs without a graph, which compiles what it needs, and records the graph. Where
    that fails (graphs need memory of their own) a warning says so, and no more of them are recorded.
    """

    def __init__(self, model: HybridLM, cache: Cache, prefix: list[State]) -> None:
        self.model, self.cache, self.prefix = model, cache, prefix
        weight, self.start = model.embedding.weight, model.architecture.num_meta_tokens
        self.batch, self.device = cache.lengths_B.shape[0], weight.device
        self.logits_BV = torch.empty(self.batch, weight.shape[0], dtype=weight.dtype, device=self.device)
        self.chunks: deque[Tensor] = deque()  # that are still to be read
        self.position = 0  # of their first token
        self.padded = 0  # the length that a graph reads; 0: without one
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.uses_graphs = self.device.type == "cuda" and _capturable(model)
        if self.uses_graphs:
            self.tokens = torch.zeros(GRAPH_TOKENS, dtype=torch.int64, device=self.device)
            self.length = torch.ones(1, dtype=torch.int64, device=self.device)
            self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, tokens_BT: Tensor) -> Tensor:
        """Logits [B, V] after prompts [B, T], one for each row of the cache; the next prefill overwrites them."""
        self.begin(tokens_BT)
        while not self.advance():
            pass
        return self.logits_BV

    def begin(self, tokens_BT: Tensor) -> None:
        """Take prompts in place of those before."""
        self.position = self.start
        self.padded = self._padded(tokens_BT)
        whole = tokens_BT.shape[1] if self.padded else PREFILL_CHUNK[self.device.type]
        self.chunks = deque(tokens_BT.to(self.device).split(whole, dim=1))

    @torch.inference_mode()
    def advance(self) -> bool:
        """Read the next chunk; whether it was the last. Then `logits_BV` is what comes after the prompts."""
        chunk_BT = self.chunks.popleft()
        if not self.padded:
            self._read_chunk(chunk_BT)
        elif not self._by_graph(chunk_BT, self.padded):
            self.begin(chunk_BT)  # again, in chunks
        return not self.chunks

    def _padded(self, tokens_BT: Tensor) -> int:
        """The padded length of prompts that a graph reads, or is to be recorded for; 0 for others."""
        padded = min(padded_length(tokens_BT.shape[1]), self.cache.slots - self.start)
        is_wanted = self.uses_graphs and self.batch * padded <= GRAPH_TOKENS
        return padded if is_wanted or padded in self.graphs else 0

    def _read_chunk(self, tokens_BT: Tensor) -> None:
        if self.position == self.start:
            self.cache.reset_from_prefix(self.prefix, self.start)
        self.logits_BV.copy_(self.model.append(tokens_BT, self.cache, self.position))
        self.position += tokens_BT.shape[1]

    def _by_graph(self, tokens_BT: Tensor, padded: int) -> bool:
        """Whether the prompts are read: without a graph of their length memory may not suffice for all at once."""
        self._padded_tokens(padded)[:, : tokens_BT.shape[1]].copy_(tokens_BT)
        self.length.fill_(tokens_BT.shape[1])
        if padded in self.graphs:
            self.graphs[padded].replay()
            return True
        try:
            self._read_padded(padded)
        except torch.OutOfMemoryError as error:
            self._record_no_more(padded, error)
            return False
        self._record(padded)
        return True

    def _record(self, padded: int) -> None:
        """The graph of a padded length. Recording runs nothing."""
        graph, stream = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        try:
            # All graphs share the memory of what they compute on the way: one runs at a time.
            with torch.cuda.graph(graph, pool=self.pool):
                self._read_padded(padded)
        except RuntimeError as error:  # torch.OutOfMemoryError and errors of CUDA are such
            torch.cuda.set_stream(stream)  # a recording that fails at its end leaves its own
            self._record_no_more(padded, error)
        else:
            self.graphs[padded] = graph

    def _record_no_more(self, padded: int, error: RuntimeError) -> None:
        self.uses_graphs = False
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        logger.warning("no graph for prompts of %d tokens, nor any more: %s", padded, reason)

    def _read_padded(self, padded: int) -> None:
        self.cache.reset_from_prefix(self.prefix, self.start)
        tokens_BT = self._padded_tokens(padded)
        self.logits_BV.copy_(self.model.append(tokens_BT, self.cache, self.start, self.length))

    def _padded_tokens(self, padded: int) -> Tensor:
        """[B, padded]; what lies behind a prompt is some earlier one's."""
        return self.tokens[: self.batch * padded].view(self.batch, padded)


def _capturable(model: HybridLM) -> bool:
    """Whether every layer takes padding, by kernels that a graph can hold."""
    letters, weight = set(model.architecture.operators), model.embedding.weight
    if not all(letter in GRAPH_OPERATIONS and layer_class(letter).takes_padding for letter in letters):
        return False
    operations = {operation for letter in letters for operation in GRAPH_OPERATIONS[letter]}
    return all(backend_of(operation, weight) == BACKENDS[operation][1] for operation in operations)

from collections.abc import Callable, Iterator

import pytest

from flashslm.benchmarking import memory
from flashslm.benchmarking.case import Case
from flashslm.config import KernelsConfig
from flashslm.models.architecture import Architecture
from flashslm.ops import kernels
from tests.unit.tiny_hybrid import tiny_hybrid


@pytest.fixture(autouse=True)
def quick_and_clean(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What takes longer than a tiny model is shortened; each test leaves the default kernels."""
    monkeypatch.setitem(memory.COPIED_BYTES, "cpu", 2**16)
    monkeypatch.setattr(memory.gc, "collect", lambda *generation: 0)
    yield
    kernels.configure(KernelsConfig())


@pytest.fixture
def architecture() -> Architecture:
    """A hybrid with room for 120 text tokens."""
    return tiny_hybrid(num_meta_tokens=8)


@pytest.fixture
def qwen3(architecture: Architecture) -> Architecture:
    """A shape that transformers' Qwen3 has: attention wider than the model, no meta tokens."""
    sizes = {"operators": "AFAF", "head_dim": 16, "num_meta_tokens": 0, "qk_norm": True}
    return Architecture.model_validate(architecture.model_dump() | sizes)


@pytest.fixture
def make_case(architecture: Architecture) -> Callable[..., Case]:
    def make(preset: str = "tiny", **changes) -> Case:
        sizes = {"architecture": architecture, "context": 20, "new_tokens": 6, "batch": 2, "repeats": 2}
        return Case(**{"preset": preset, "device": "cpu", "dtype": "float32"} | sizes | changes)

    return make

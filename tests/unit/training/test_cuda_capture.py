"""Recording on a stand-in for a GPU: which stream it uses, and what follows a recording that fails."""

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from flashslm.training import cuda_capture
from flashslm.training.cuda_capture import CudaCapture


class Gpu:
    """Notes what is called; the first `failures` recordings cannot be ended."""

    def __init__(self, failures: int) -> None:
        self.failures, self.calls, self.streams = failures, list[str](), 0

    def stream(self, device: torch.device) -> SimpleNamespace:
        self.streams += 1
        return SimpleNamespace(device=torch.device("cpu"), device_index=0)

    def graph(self) -> SimpleNamespace:
        return SimpleNamespace(capture_begin=lambda **_: self.calls.append("begin"), capture_end=self.end, replay=None)

    def end(self) -> None:
        self.calls.append("end")
        if self.calls.count("end") <= self.failures:
            raise RuntimeError("the recording is not valid")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Any:
    found = Gpu(getattr(request, "param", 0))
    stand_ins = {
        "Stream": found.stream,
        "CUDAGraph": found.graph,
        "graph_pool_handle": lambda: (0, 1),
        "stream": lambda stream: nullcontext(),
        "synchronize": lambda: None,
        "empty_cache": lambda: None,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(torch.cuda, name, stand_in)
    for name in ("_cuda_endAllocateToPool", "_cuda_releasePool"):
        monkeypatch.setattr(torch._C, name, lambda *_, name=name: found.calls.append(name), raising=False)
    cuda_capture._stream_of.cache_clear()
    yield found
    cuda_capture._stream_of.cache_clear()


def test_trainings_after_each_other_share_a_stream(gpu: Gpu) -> None:
    for _ in range(3):
        _, result = CudaCapture(torch.device("cuda", 0)).record(lambda: 7)
        assert result == 7
    assert gpu.streams == 1 and gpu.calls == ["begin", "end"] * 3


@pytest.mark.parametrize("gpu", [1], indirect=True)
def test_a_failed_recording_closes_its_pool_and_lets_the_generator_go(gpu: Gpu) -> None:
    with pytest.raises(RuntimeError, match="not valid"):
        CudaCapture(torch.device("cuda", 0)).record(lambda: None)
    assert gpu.calls == ["begin", "end", "_cuda_endAllocateToPool", "_cuda_releasePool", "begin", "end"]

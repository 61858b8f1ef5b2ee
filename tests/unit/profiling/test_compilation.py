import pytest

from flashslm.config import KernelsConfig, ModelConfig, ProfilingConfig
from flashslm.ops import kernels
from flashslm.profiling import compilation, measure
from flashslm.profiling.compilation import compile_ahead

CONFIG = ProfilingConfig(widths=(16, 32, 48), batches=(1, 8), operators="DMAFG", compile_processes=2)
SIZES = ModelConfig()


@pytest.fixture
def jobs(monkeypatch):
    """What a pool of processes on a machine with a GPU is asked for."""
    found = []

    class Pool:
        def __init__(self, processes, context):
            found.append((processes, context.get_start_method()))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, config, *rest):
            found.append((function, config.widths, config.batches, config.operators, *rest))
            return self

        def result(self):
            pass

    monkeypatch.setattr(compilation, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(compilation, "pick_device", lambda device: "cuda")
    monkeypatch.setattr(compilation, "chosen", lambda *operation: "fused")
    monkeypatch.setattr(measure, "available_bytes", lambda device: 8e9)
    return found


def test_processes_share_widths_and_memory(jobs):
    compile_ahead(CONFIG, SIZES, 300)
    assert jobs[0] == (2, "spawn")
    assert jobs[1:] == [(measure.compile_kernels, (w,), (1, 8), "DMAF", SIZES, 300, 4e9) for w in (16, 32, 48)]


def test_it_can_be_switched_off(jobs):
    compile_ahead(CONFIG.model_copy(update={"compile_processes": 0}), SIZES, 300)
    assert jobs == []


def test_there_is_nothing_to_compile_in_torchs_form(jobs, monkeypatch):
    monkeypatch.setattr(compilation, "chosen", kernels.chosen)
    kernels.configure(KernelsConfig(decode="torch"))
    try:
        compile_ahead(CONFIG, SIZES, 300)
    finally:
        kernels.configure(KernelsConfig())
    assert jobs == []


def test_nor_on_a_cpu(jobs, monkeypatch):
    monkeypatch.setattr(compilation, "pick_device", lambda device: "cpu")
    compile_ahead(CONFIG, SIZES, 300)
    assert jobs == []

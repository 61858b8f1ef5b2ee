import pytest

from flashslm.config import KernelsConfig, ModelConfig, ProfilingConfig
from flashslm.ops import kernel_cache, kernels
from flashslm.profiling import compilation
from flashslm.profiling import plan as plan_module
from flashslm.profiling.compilation import compile_ahead
from flashslm.profiling.measure import build_table_steps
from flashslm.profiling.plan import ProfilingPlan

CONFIG = ProfilingConfig(widths=(16, 32, 48), batches=(1, 8), operators="DMAFG", compile_processes=2)
PLAN = ProfilingPlan(CONFIG, ModelConfig(), 300)


@pytest.fixture
def jobs(monkeypatch, tmp_path):
    """What a pool of processes on a machine with a GPU is asked for."""
    found = []

    class Pool:
        def __init__(self, processes, context):
            found.append((processes, context.get_start_method()))

        def __enter__(self):
            return self

        def __exit__(self, *error):
            pass

        def submit(self, function, plan, *rest):
            config = plan.profiling
            found.append((function, config.widths, config.batches, config.operators, plan.vocab_size, *rest))
            return self

        def result(self):
            pass

    monkeypatch.setattr(compilation, "ProcessPoolExecutor", Pool)
    monkeypatch.setattr(plan_module, "pick_device", lambda device: "cuda")
    monkeypatch.setattr(compilation, "chosen", lambda *operation: "fused")
    monkeypatch.setattr(compilation, "available_bytes", lambda device: 8e9)
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path))
    return found


def test_processes_share_widths_and_memory(jobs):
    compile_ahead(PLAN)
    assert jobs[0] == (2, "spawn")
    assert jobs[1:] == [(build_table_steps, (w,), (1, 8), "DMAF", 300, 4e9) for w in (16, 32, 48)]


def test_a_table_is_compiled_once_by_the_same_code(jobs, monkeypatch):
    compile_ahead(PLAN, "a")
    once = len(jobs)
    compile_ahead(PLAN, "a")
    assert len(jobs) == once
    for unread in ({"repeats": 99}, {"calibration_models": 5}, {"check_models": 9}):
        compile_ahead(PLAN.changed(**unread), "a")
        assert len(jobs) == once
    for plan, code in ((PLAN, "b"), (PLAN.changed(batches=(1, 4)), "a"), (PLAN, ""), (PLAN, "")):
        before = len(jobs)
        compile_ahead(plan, code)
        assert len(jobs) == before + once
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(compilation.ProcessPoolExecutor, "result", lambda self: (_ for _ in ()).throw(RuntimeError))
        compile_ahead(PLAN, "c")
    before = len(jobs)
    compile_ahead(PLAN, "c")
    assert len(jobs) > before, "what failed is not noted as done"


def test_it_can_be_switched_off(jobs):
    compile_ahead(PLAN.changed(compile_processes=0))
    assert jobs == []


def test_there_is_nothing_to_compile_in_torchs_form(jobs, monkeypatch):
    monkeypatch.setattr(compilation, "chosen", kernels.chosen)
    kernels.configure(KernelsConfig(decode="torch"))
    try:
        compile_ahead(PLAN)
    finally:
        kernels.configure(KernelsConfig())
    assert jobs == []


def test_nor_on_a_cpu(jobs, monkeypatch):
    monkeypatch.setattr(plan_module, "pick_device", lambda device: "cpu")
    compile_ahead(PLAN)
    assert jobs == []

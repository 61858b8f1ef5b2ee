import pytest

from flashslm.config import KernelsConfig
from flashslm.ops import kernels


@pytest.fixture(autouse=True)
def default_setting():
    kernels.configure(KernelsConfig())
    yield
    kernels.configure(KernelsConfig())


@pytest.mark.parametrize("operation", kernels.BACKENDS)
def test_auto_is_torch_on_a_cpu(operation):
    assert kernels.chosen(operation, "cpu", "float32") == kernels.BACKENDS[operation][0]
    assert kernels.decisions() == {f"{operation}/cpu/float32": kernels.BACKENDS[operation][0]}


@pytest.mark.parametrize("operation", sorted(kernels.HALF_PRECISION_ONLY))
def test_auto_on_cuda_in_fp32_is_torch_where_the_kernels_are_half_precision(operation):
    assert kernels.chosen(operation, "cuda", "float32") == kernels.BACKENDS[operation][0]


def test_missing_library_on_cuda_is_an_error_that_names_the_other_form(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(kernels.MissingKernel, match=r"mamba-ssm is not installed .*kernels\.ssd=chunked"):
        kernels.chosen("ssd", "cuda", "bfloat16")
    kernels.configure(KernelsConfig(ssd="chunked"))
    assert kernels.chosen("ssd", "cuda", "bfloat16") == "chunked"


def test_installed_library_on_cuda_is_taken(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: object())
    assert [kernels.chosen(op, "cuda", "bfloat16") for op in kernels.BACKENDS] == [
        fused for _, fused in kernels.BACKENDS.values()
    ]


def test_fused_form_on_a_cpu_is_an_error():
    kernels.configure(KernelsConfig(delta_rule="fla"))
    with pytest.raises(kernels.MissingKernel, match="runs on cuda, the tensors are on cpu"):
        kernels.chosen("delta_rule", "cpu", "bfloat16")


def test_a_decision_is_logged_once(caplog):
    with caplog.at_level("INFO"):
        kernels.chosen("gla", "cpu", "float32")
        kernels.chosen("gla", "cpu", "float32")
    assert [r.message for r in caplog.records] == ["kernels.gla on cpu/float32: chunked (setting: auto)"]


def test_default_torch_is_torch_on_every_device():
    kernels.configure(KernelsConfig(default="torch"))
    assert [kernels.chosen(op, "cuda", "bfloat16") for op in kernels.BACKENDS] == [
        torch_form for torch_form, _ in kernels.BACKENDS.values()
    ]


def test_preflight_refuses_before_anything_runs(monkeypatch):
    monkeypatch.setattr(kernels.importlib.util, "find_spec", lambda name: None)
    kernels.preflight("cpu")
    with pytest.raises(kernels.MissingKernel, match="flash-linear-attention is not installed"):
        kernels.preflight("cuda")
    kernels.configure(KernelsConfig(default="torch"))
    kernels.preflight("cuda")
    kernels.configure(KernelsConfig(ssd="mamba-ssm"))
    with pytest.raises(kernels.MissingKernel, match="runs on cuda, the tensors are on cpu"):
        kernels.preflight("cpu")
    assert kernels.decisions() == {}


def test_a_note_is_recorded():
    kernels.note("decode of gla", "torch")
    assert kernels.decisions() == {"decode of gla": "torch"}


def test_a_decision_is_logged_once_until_it_is_another(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "flashslm")
    for form in ("plain", "plain", "graph", "graph"):
        kernels.forget("form of a test")
        kernels.note("form of a test", form)
        assert kernels.decisions()["form of a test"] == form
    assert caplog.messages == ["form of a test: plain", "form of a test: graph"]
    kernels.forget("form of a test")

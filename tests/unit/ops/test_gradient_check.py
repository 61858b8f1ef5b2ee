"""The check that a GPU's kernels have right gradients, on the CPU's backends; wrong ones are refused by name."""

import json

import pytest
import torch

from flashslm.ops import bad_sets, dispatch, gradient_cases, gradient_check, kernel_cache
from flashslm.ops.bad_sets import known_problems
from flashslm.ops.gradient_check import GradientError, WrongGradient, check_gradients, require_right_gradients
from flashslm.ops.kernels import BACKENDS

FACTS = {"gpu": "NVIDIA H200, 580", "torch": "2.11.0+cu130", "triton": "3.6.0", "flash-linear-attention": "0.6.0"}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Sizes for a CPU."""
    monkeypatch.setattr(gradient_cases, "LENGTH", 19)
    monkeypatch.setattr(gradient_cases, "SIZE", 16)


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """`gpu(**versions)`: training takes the fused backends of such a machine; the CPU's run in their place."""
    monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path))
    monkeypatch.setattr(gradient_check, "chosen", lambda operation, *_: BACKENDS[operation][1])

    def become(**versions):
        facts = FACTS | {name.replace("_", "-"): version for name, version in versions.items()}
        monkeypatch.setattr(gradient_check, "cache_facts", lambda: facts)
        return tmp_path

    return become


@pytest.fixture
def wrong_delta_rule(monkeypatch):
    """One whose gradient of k is half as large as it should be."""
    right = dispatch.delta_rule

    def halved(inputs, normalise):
        k = inputs.k_BTHK
        return right(inputs._replace(k_BTHK=0.5 * k + 0.5 * k.detach()), normalise)

    monkeypatch.setattr(gradient_cases.dispatch, "delta_rule", halved)


def test_every_operation_of_training_is_measured():
    errors = check_gradients(device="cpu", dtype=torch.float32)
    assert {error.operation for error in errors} == BACKENDS.keys() - {"decode"}
    assert all(error.relative < 1e-4 for error in errors), errors


def test_a_wrong_gradient_of_one_input_is_found(wrong_delta_rule):
    right, wrong = check_gradients(["ssd", "delta_rule"], "cpu", torch.float32)
    assert right.passed and not wrong.passed and wrong.relative == pytest.approx(0.5, abs=0.01)


def test_a_kernel_that_does_not_run_is_an_error_with_its_reason(monkeypatch):
    def refuse(*_):
        raise ValueError("no kernel image")

    monkeypatch.setattr(gradient_cases.dispatch, "ssd", refuse)
    (error,) = check_gradients(["ssd"], "cpu", torch.float32)
    assert not error.passed and error.problem == "does not run: ValueError: no kernel image"


def test_training_is_refused_on_wrong_gradients(gpu, wrong_delta_rule):
    kept = gpu()
    message = r"delta_rule: its gradient is 50.\d% off \(found: gpu NVIDIA H200.*triton 3.6.0.*delta_rule=chunked"
    with pytest.raises(WrongGradient, match=message):
        require_right_gradients("DFMF", "cpu", torch.float32)
    files = {file.name for file in kept.rglob("*.json")}
    assert files == {f"{name}.float32.json" for name in ("ssd", "causal_conv", "cross_entropy", "elementwise")}
    require_right_gradients("MF", "cpu", torch.float32)  # a model without the operator


def test_a_verdict_is_kept_beside_the_kernels(gpu, monkeypatch):
    kept = gpu()
    state = torch.get_rng_state()
    require_right_gradients("AF", "cpu", torch.float32)
    assert torch.equal(torch.get_rng_state(), state)
    verdict = json.loads(next(kept.rglob("attention.float32.json")).read_text())
    assert verdict["operation"] == "attention" and verdict["relative"] < 1e-4
    monkeypatch.setattr(gradient_check, "check_gradients", lambda *_: pytest.fail("measured again"))
    require_right_gradients("AF", "cpu", torch.float32)


@pytest.mark.parametrize(
    "operators, versions, message",
    [
        ("DF", {"flash_linear_attention": "0.5.1"}, r"delta_rule: the gradient of k is 54 % off .*attention 0.5.1 is"),
        ("GF", {"triton": "3.7.0"}, r"gated_delta_rule: Triton 3.4 to 3.7.0 .*triton 3.7.0 is installed"),
    ],
)
def test_a_known_bad_set_is_refused_by_name_and_not_measured(operators, versions, message, gpu, monkeypatch):
    gpu(**versions)
    monkeypatch.setattr(bad_sets, "_installed", lambda module: False)
    measured = []

    def measure(operation, case):
        measured.append(operation)
        return GradientError(operation, 0.0, 0.0)

    monkeypatch.setattr(gradient_check, "_measure", measure)
    with pytest.raises(WrongGradient, match=message):
        require_right_gradients(operators, "cpu", torch.float32)
    assert measured == ["causal_conv", "cross_entropy", "elementwise"]


@pytest.mark.parametrize(
    "facts",
    [
        {"gpu": "NVIDIA A100-SXM4-80GB, 580"},
        {"triton": "3.7.1", "flash-linear-attention": "0.6.0"},
        {"triton": "3.3.1", "flash-linear-attention": "0.6.0+git7"},
        {"triton": "", "flash-linear-attention": ""},
    ],
)
def test_other_sets_are_not_refused(facts):
    assert known_problems(["delta_rule", "gated_delta_rule"], FACTS | {"flash-linear-attention": "0.5"} | facts) == {}


def test_tilelang_makes_the_gated_delta_rule_right(monkeypatch):
    for installed in (True, False):
        monkeypatch.setattr(bad_sets, "_installed", lambda module, found=installed: found and module == "tilelang")
        assert ("gated_delta_rule" in known_problems(["gated_delta_rule"], FACTS)) is not installed

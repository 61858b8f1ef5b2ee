"""The one object that says what an architecture costs."""

import random
import subprocess
import sys

import pytest

from flashslm import hardware
from flashslm.models import accounting
from flashslm.models.architecture import parse_operators
from flashslm.models.describe import Device, describe, find_device, fold_operators
from flashslm.models.operator_spec import OPERATORS
from flashslm.models.presets import preset


def test_costs_are_the_account_s(make_architecture):
    a = make_architecture(operators=OPERATORS, window=100)
    found = describe(a, 200, 3, Device("a GPU", 2e9), ["one reason"])
    assert found.parameters == accounting.parameters(a)
    assert found.flops_per_token == accounting.forward_flops_per_token(a, 200)
    assert found.decode_bytes_per_token == accounting.decode_bytes_per_token(a, 200, batch=3)
    assert found.kv_bytes_per_token == accounting.kv_bytes_per_token(a) == 64
    assert found.kv_bytes_per_sequence == (200 + 100) * 64
    assert found.state_bytes_per_sequence == accounting.state_bytes(a)
    assert found.floor_ms_per_token == pytest.approx(found.decode_bytes_per_token / 2e9 * 1000)
    assert (found.exportable, found.export_blockers) == (False, ["one reason"])
    assert found.sizes["hidden_size"] == 32 and "operators" not in found.sizes


def test_the_floor_of_nemotron_flash_1b_on_h200():
    """Weights 0.40 ms, 8k of keys and values 7 µs, states read and written 7 µs (4.8 TB/s)."""
    found = describe(preset("nemotron-flash-1b"), 8192, 1, find_device("NVIDIA H200"), [])
    weights, kv, states = 2 * (965_389_440 - 524_288), 8192 * 4096, 4 * (4 * 2048 + 6 * 4096) * 128
    convolutions = 2 * 3 * (4 * 3 * 2048 + 6 * 4352)
    assert found.state_bytes_per_sequence == states + convolutions
    assert found.floor_ms_per_token == pytest.approx((weights + kv + 2 * (states + convolutions)) / 4.8e9)
    assert 0.41 < found.floor_ms_per_token < 0.42 and found.exportable


def test_no_floor_without_a_known_bandwidth(make_architecture):
    assert describe(make_architecture(), 10, 1, Device("a CPU", None), []).floor_ms_per_token is None


def test_a_context_beyond_the_models_positions_is_said_to_be(make_architecture):
    a, device = make_architecture(max_position_embeddings=1000), Device("a CPU", None)
    assert describe(a, 1000, 1, device, []).assumptions == ()
    assert describe(a, 1001, 1, device, []).assumptions == ("a context of 1,001, though the model has 1,000 positions",)


@pytest.mark.parametrize("name", ["NVIDIA H200", "H200", "nvidia h200"])
def test_gpu_by_name(name):
    assert find_device(name) == Device("NVIDIA H200", 4.8e12)


def test_unknown_gpu_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'T4' has no known memory bandwidth: choose one of NVIDIA A100.*NVIDIA B200"):
        find_device("T4")


def test_present_device(monkeypatch):
    monkeypatch.setattr("flashslm.models.describe.pick_device", lambda _: "cpu")
    assert find_device() == Device(hardware.device_fingerprint("cpu").name, None)


@pytest.mark.parametrize(
    ("operators", "notation"),
    [
        ("DFMFAFMF" * 2 + "DFMF" * 2, "(DFMFAFMF)x2 (DFMF)x2"),
        ("AF" * 28, "(AF)x28"),
        ("MFAFAFD" * 3 + "MFAFDFF", "(MFAFAFD)x3 MFAFDFF"),
        ("DFMFDFMFA", "(DFMF)x2 A"),
        ("D", "D"),
        ("AAAA", "AAAA"),
        ("F" + "A" * 12, "F (A)x12"),
    ],
)
def test_folded_notation(operators, notation):
    assert fold_operators(operators) == notation


def test_folded_notation_is_read_back():
    rng = random.Random(0)
    for _ in range(200):
        unit = "".join(rng.choices(OPERATORS, k=rng.randint(1, 6)))
        operators = unit * rng.randint(1, 5) + "".join(rng.choices(OPERATORS, k=rng.randint(0, 12)))
        assert parse_operators(fold_operators(operators)) == operators


def test_no_torch_is_imported():
    code = "import sys, flashslm.models.describe, flashslm.models.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

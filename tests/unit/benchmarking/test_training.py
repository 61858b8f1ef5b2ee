import json

import pytest
from typer.testing import CliRunner

from flashslm.benchmarking.training import bench_training
from flashslm.benchmarking.training_peer import build_peer
from flashslm.benchmarking.training_steps import PARTS, TrainingCase
from flashslm.cli.app import app
from flashslm.config import KernelsConfig, ModelConfig
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture

SIZES = ModelConfig(head_dim=8, kv_group=2, ffn_ratio=2, mamba_state=8, mamba_head_dim=8, num_meta_tokens=4)
ARCHITECTURE = build_architecture("DFMFAF", 16, SIZES, 64)


def case(**changes):
    sizes = {"preset": "tiny", "architecture": ARCHITECTURE, "sequence_length": 16, "batch": 2, "steps": 3}
    return TrainingCase(**sizes | {"device": "cpu", "precision": "float32"} | changes)


def test_both_variants_are_timed_in_parts():
    result = bench_training(case(), KernelsConfig())
    assert result.parameters == parameters(ARCHITECTURE)["total"] and result.steps == 3
    for speed in (result.weight_norm_off, result.weight_norm_on):
        assert set(speed.parts_ms) == set(PARTS) and all(value >= 0 for value in speed.parts_ms.values())
        assert 3 < speed.loss_nats < 7  # random tokens of 64 kinds
        assert speed.tokens_per_s == pytest.approx(32 / (speed.step_ms_median * 1e-3))
        assert speed.mfu is None  # no data sheet for a CPU
    assert result.weight_norm_on.parts_ms["weight_norm"] > 5 * result.weight_norm_off.parts_ms["weight_norm"]
    assert "delta_rule/cpu/float32" in result.kernels


@pytest.mark.parametrize(
    "changes, said",
    [({"batch": 0}, "batch is 0"), ({"steps": 0}, "steps is 0"), ({"sequence_length": 7}, "from 8 to the 33020")],
)
def test_a_size_that_does_not_fit_is_named(changes, said):
    with pytest.raises(ValueError, match=said):
        case(**changes)


@pytest.mark.parametrize("library, other", [("transformers", "a Qwen3 preset"), ("fla", "deltanet-1b")])
def test_a_library_without_the_shape_says_which_it_has(library, other):
    with pytest.raises(ValueError, match=other):
        build_peer(case(), library)


def test_the_command_ends_with_one_json_object(tmp_path):
    model = tmp_path / "architecture.json"
    model.write_text(ARCHITECTURE.model_dump_json())
    sizes = ["--sequence-length", "16", "--batch", "1", "--steps", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, ["bench", "training", "--model", str(model), *sizes])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weight_norm_on"]["tokens_per_s"] > 0 and found["peer"] is None

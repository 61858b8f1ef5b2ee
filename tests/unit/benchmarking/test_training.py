import dataclasses
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from typer.testing import CliRunner

import benchmarks.training
from flashslm.benchmarking import checkpoint_cost, training, training_graph, training_peer
from flashslm.benchmarking.training import bench_training
from flashslm.benchmarking.training_peer import build_peer, require_peer
from flashslm.benchmarking.training_steps import PARTS, Trained, TrainingCase, random_batch
from flashslm.cli.app import app
from flashslm.cli.bench import show_training
from flashslm.config import KernelsConfig, ModelConfig, TrainingConfig
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture
from flashslm.models.hybrid import HybridLM
from flashslm.models.presets import at_width, preset
from flashslm.training.distributed import World
from flashslm.training.step import StepResult, TrainStep

ROOT = Path(__file__).parents[3]
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


def test_groups_that_the_processes_do_not_fill_are_refused(monkeypatch):
    monkeypatch.setattr(training, "current_world", lambda: World(size=4))
    with pytest.raises(ValueError, match="--shard-processes is 3 and 4 processes train: give a divisor of 4, 1 for"):
        bench_training(case(shard_processes=3), KernelsConfig())


@pytest.mark.parametrize("library, other", [("transformers", "a Qwen3 preset"), ("fla", "deltanet-1b")])
def test_a_library_without_the_shape_says_which_it_has(library, other):
    with pytest.raises(ValueError, match=other):
        build_peer(case(), library)


def test_a_peer_that_cannot_run_is_named_before_anything_is_measured(monkeypatch):
    monkeypatch.setattr(training, "_measure_ours", lambda *_: pytest.fail("measured"))
    with pytest.raises(ValueError, match="fla's DeltaNet has no shape like 'tiny'"):
        bench_training(case(), KernelsConfig(), "fla")
    deltanet = case(
        preset="mine", architecture=ARCHITECTURE.model_copy(update={"operators": "DF", "num_meta_tokens": 0})
    )
    with pytest.raises(ValueError, match="peer 'fla' needs a GPU, and this run is on the CPU: leave out --peer"):
        bench_training(deltanet, KernelsConfig(), "fla")
    monkeypatch.setattr(training_peer.importlib.util, "find_spec", lambda module: None)
    with pytest.raises(ValueError, match="peer 'fla' needs flash-linear-attention and transformers: pip install"):
        require_peer(dataclasses.replace(deltanet, device="cuda"), "fla")


def test_the_command_ends_with_one_json_object(tmp_path):
    model = tmp_path / "architecture.json"
    model.write_text(ARCHITECTURE.model_dump_json())
    sizes = ["--sequence-length", "16", "--batch", "1", "--steps", "2", "--device", "cpu"]
    done = CliRunner().invoke(app, ["bench", "training", "--model", str(model), *sizes, "--gather-dtype", "bfloat16"])
    assert done.exit_code == 0, done.output
    assert "warning: --gather-dtype: no effect: one process trains" in done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["weight_norm_on"]["tokens_per_s"] > 0 and found["peer"] is None


def test_steps_run_while_a_checkpoint_is_written(monkeypatch):
    steps = []
    store = checkpoint_cost._DirectoryStore.put_tree

    trees = []

    def slowly(self, *given):
        trees.append(given)
        while len(trees) == 2 and len(steps) < 5:  # three before the checkpoints, two while the second is written
            time.sleep(0.01)
        return store(self, *given)

    monkeypatch.setattr(checkpoint_cost._DirectoryStore, "put_tree", slowly)
    monkeypatch.setattr("flashslm.training.checkpoint._TRAINING_WAITS_S", 0.01)
    model = HybridLM.build(ARCHITECTURE)
    step = TrainStep(model, TrainingConfig(), "float32", weight_norm=True)
    loss = step.loss(random_batch(case(), 0))
    loss.backward()
    step.update()

    def seconds(work):
        before = len(steps)
        work()
        time.sleep(0.02)
        return 0.4 if len(steps) == before else 0.1 if len(steps) <= 3 else 0.2

    monkeypatch.setattr(checkpoint_cost, "_seconds", seconds)
    cost = checkpoint_cost.measure_checkpoint(step, lambda: steps.append(None), 3)
    assert cost.steps >= 2 and len(trees) == 2
    assert (cost.first_stop_ms, cost.stop_ms, cost.step_ms_without, cost.step_ms_during) == (400, 400, 100, 200)
    assert cost.step_ms_preparing == 100, "a CPU has no memory to take, and no step runs meanwhile"
    assert cost.checkpoint_bytes > 12 * parameters(ARCHITECTURE)["total"]  # weights and two moments in fp32
    assert cost.slow_down == pytest.approx(1 + cost.stop_ms / (100 * cost.steps))


class Capture:
    """Replays by running: a CPU has no graphs."""

    def warm_up(self, work):
        return work()

    def record(self, work):
        return work, StepResult(torch.zeros(()), torch.zeros(()))


def small_peer(case):
    """A library's model: here the project's own."""
    step = TrainStep(HybridLM.build(case.architecture), TrainingConfig(), case.precision, weight_norm=False)
    step.begin(0)
    return Trained(step.loss, step.update, lambda: None)


def test_both_forms_of_a_step_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(training_graph, "not_recordable", lambda step: "")
    monkeypatch.setattr("flashslm.training.step_graph.CudaCapture", lambda device: Capture())
    monkeypatch.setattr(training, "require_peer", lambda *_: None)
    monkeypatch.setattr(training, "build_peer", lambda case, library: (library, small_peer(case)))
    result = bench_training(case(steps=4), KernelsConfig(), "transformers", graph=True)
    for form in (result.graph.plain, result.graph.graph):
        assert 0 < form.step_ms_median <= form.step_ms_p90 and form.busy_share is None
        assert form.tokens_per_s == pytest.approx(32 / (form.step_ms_median * 1e-3))
    assert result.graph.speed_up == result.graph.plain.step_ms_median / result.graph.graph.step_ms_median
    assert result.peer.graph_ratio == result.graph.graph.tokens_per_s / result.peer.tokens_per_s
    show_training(result)
    assert f"and {result.peer.graph_ratio:.2f} times as a CUDA graph" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("columns", [80, 40])
def test_no_number_is_cut_off(columns, monkeypatch, capsys):
    """Lines of a log are 80 characters wide."""
    monkeypatch.setenv("COLUMNS", str(columns))
    result = bench_training(case(), KernelsConfig())
    slow = {"tokens_per_s": 1_234_567.0, "step_ms_median": 123_456.7, "step_ms_p90": 234_567.8}
    times = dict(zip(PARTS, (34_567.1, 45_678.2, 56_789.3, 67_890.4), strict=True))
    speed = result.weight_norm_off.model_copy(update=slow | {"parts_ms": times, "loader_wait_ms": 1_234.5})
    show_training(result.model_copy(update={"weight_norm_off": speed}))
    shown = capsys.readouterr().out
    assert "…" not in shown
    for number in ("1,234,567", "123456.7", "234567.8", "34567.1", "45678.2", "56789.3", "67890.4", "1234.5"):
        assert number in shown.split()


def test_a_cpu_has_no_graph_to_time(monkeypatch):
    """Said before minutes of other measurements are made."""
    monkeypatch.setattr(TrainStep, "whole", lambda *_: pytest.fail("a step was run first"))
    with pytest.raises(ValueError, match="--graph: a step cannot be recorded here: the model is on cpu"):
        bench_training(case(), KernelsConfig(), graph=True)


def test_a_width_that_leaves_part_of_a_head_is_refused():
    flash = preset("nemotron-flash-1b")
    other = at_width(flash, 1024)
    assert (other.hidden_size, other.num_heads, other.num_kv_heads, other.ffn_size) == (1024, 8, 2, 3072)
    assert (other.head_dim, other.operators) == (flash.head_dim, flash.operators)
    with pytest.raises(ValueError, match="width 1792 leaves num_kv_heads no whole number: take a multiple of 512"):
        at_width(flash, 1792)


def test_the_benchmark_compares_two_processes_with_one(tmp_path):
    """All that can be asked of it, on a model for a CPU."""
    (tmp_path / "architecture.json").write_text(ARCHITECTURE.model_dump_json())
    model = str(tmp_path / "architecture.json")
    command = [sys.executable, "benchmarks/training.py", "--presets", model]
    sizes = ["--steps", "2", "--batch", "1", "--sequence-length", "16", "--processes", "2", "--width", "32"]
    more = ["--checkpoint", "--deterministic", "--output", str(tmp_path / "record.json")]
    more += ["--shard-processes", "0", "1", "--gather-dtype", "float32", "bfloat16"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *sizes, *more], cwd=ROOT, env=environment, capture_output=True, text=True)
    record = json.loads(done.stdout.splitlines()[-1])
    assert done.returncode == 0 and record["failed"] == []
    assert record == json.loads((tmp_path / "record.json").read_text())
    (row,) = record["training"]
    ways = [(several["shard_processes"], several["gather_dtype"]) for several in row["several_processes"]]
    assert ways == [(0, "float32"), (0, "bfloat16"), (1, "float32")]  # of copies no weights are sent
    for several in row["several_processes"]:
        rounded = several["gather_dtype"] == "bfloat16"
        assert several["largest_difference_nats"] < (0.1 if rounded else 1e-5)
        assert several["processes"] == 2 and several["of_one_alone"]["weight_norm_on"] > 0
        assert set(several["parts_ms"]["weight_norm_on"]) == set(PARTS)
        assert len(set(several["first_losses_nats"])) == len(several["first_losses_nats"]) == 3
    assert done.stderr.count("--micro-batches 2") == 1  # all are compared with the same losses of one process
    assert row["first_step_of_another_width_s"]["32"] > 0 and row["deterministic"]["weight_norm_on"]["tokens_per_s"] > 0
    assert row["checkpoint"]["checkpoint_bytes"] > 12 * row["parameters"]


def test_a_measurement_that_takes_too_long_is_ended_with_all_below_it(tmp_path, monkeypatch):
    class Impatient(subprocess.Popen):
        def wait(self, timeout=None):
            if timeout is None:
                return super().wait()
            while not (tmp_path / "ready").exists():
                time.sleep(0.01)
            raise subprocess.TimeoutExpired(self.args, timeout)

    monkeypatch.setattr(benchmarks.training.subprocess, "Popen", Impatient)
    script = f"sleep 600 & echo $!; echo step 7 >&2; touch {tmp_path}/ready; wait"
    code, lines, said = benchmarks.training.run(["sh", "-c", script], 60.0)
    assert (code, said) == (benchmarks.training.TIMED_OUT, ["step 7", "ended after 60 s"])
    child = int(lines[0])  # at most a zombie that nothing has waited for
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert benchmarks.training.run(["true"], 0.0) == (benchmarks.training.TIMED_OUT, [], ["no time was left for it"])


def test_a_measurement_that_fails_is_listed_with_what_it_said(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert benchmarks.training.main(["--presets", "qwen3-0.6b", "--output", str(tmp_path / "record.json")]) == 1
    (failed,) = json.loads((tmp_path / "record.json").read_text())["failed"]
    assert (failed["what"], failed["code"]) == ("qwen3-0.6b", 1) and "needs a GPU" in "".join(failed["stderr"])
    assert "needs a GPU" in capsys.readouterr().err


@pytest.mark.parametrize(
    "options, said",
    [
        (["--sequence-length", "7"], "sequence_length is 7: from 8 to the 32768 positions of the model"),
        (["--width", "1000"], "width 1000 leaves num_heads no whole number: take a multiple of 512"),
        (["--shard-processes", "1"], "are of several processes: give --processes too"),
        (["--processes", "2", "4", "--shard-processes", "4"], "--shard-processes 4 with --processes 2: give a divisor"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_before_the_first_process(options, said, monkeypatch, capsys):
    monkeypatch.setattr(benchmarks.training, "run", lambda *_: pytest.fail("a measurement was started"))
    with pytest.raises(SystemExit) as ended:
        benchmarks.training.main(["--presets", "nemotron-flash-1b", *options])
    assert ended.value.code == 2 and said in " ".join(capsys.readouterr().err.split())

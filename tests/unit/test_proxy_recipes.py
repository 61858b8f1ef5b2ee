"""configs/h200-proxy.yaml and its twin for a CPU: the same search, planned to the last candidate without a device."""

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from flashslm.config import OperatorSizes, RunConfig
from flashslm.config.file import load
from flashslm.config.no_effect import without_effect
from flashslm.data.plan import plan_pieces
from flashslm.hardware import DeviceFingerprint
from flashslm.models.accounting import parameters
from flashslm.models.architecture import build_architecture, repeat_block
from flashslm.profiling.budget import latency_budget_ms
from flashslm.profiling.latency_table import LatencyEntry, LatencyTable
from flashslm.profiling.plan import ProfilingPlan
from flashslm.search.evolution import Proposer
from flashslm.search.fit import WidthFitter
from flashslm.steps.recipe_checks import problems
from flashslm.steps.warm_kernels import tuning, warm_ups
from tests.unit.search.synthetic import run_serially

CONFIGS = Path(__file__).parents[2] / "configs"
NAMES = ("h200-proxy", "h200-proxy-cpu")


def recipe(name: str, *overrides: str) -> RunConfig:
    return load(CONFIGS / f"{name}.yaml", list(overrides), checks=problems)


def made_up_table(config: RunConfig) -> LatencyTable:
    """Milliseconds that grow with the width, attention's with the context too."""
    cost = {"D": 1.0, "M": 1.5, "A": 0.5, "F": 0.7, "head": 2.0}
    entries = [
        LatencyEntry(operator=o, width=w, context=c, batch=1, median_ms=ms, p10_ms=ms, p90_ms=ms)
        for o, unit in cost.items()
        for w in config.profiling.widths
        for c in config.profiling.contexts
        for ms in [unit * w / 256 * (1 + c / 1024 if o == "A" else 1)]
    ]
    cpu = DeviceFingerprint(kind="cpu", cpu="x", cores=1, gpu="", driver="", torch="2", cuda="")
    facts = {"device": cpu, "dtype": "float32", "threads": 1, "warmup": 1, "repeats": 3, "sizes": config.model}
    return LatencyTable(**facts, vocab_size=config.data.vocab_size, entries=tuple(entries))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_in_them_is_in_vain(name: str) -> None:
    assert without_effect(recipe(name)) == []


def test_the_twin_searches_the_same_space_for_another_device() -> None:
    gpu, cpu = map(recipe, NAMES)
    assert (gpu.profiling.device, cpu.profiling.device) == ("cuda", "cpu")
    assert (gpu.profiling.training_device, cpu.profiling.training_device) == ("cuda", "auto")
    assert (gpu.data, gpu.model, gpu.latency) == (cpu.data, cpu.model, cpu.latency)
    for field in ("widths", "seed_designs", "max_operators", "max_mixer_types"):
        assert getattr(gpu.search, field) == getattr(cpu.search, field)
    assert gpu.gate.model_name != cpu.gate.model_name


def test_the_text_is_named_on_the_command_line(tmp_path: Path) -> None:
    texts = [f"document {number}" for number in range(50)]
    for number in range(2):
        parquet.write_table(pyarrow.table({"text": texts}), tmp_path / f"train-{number}.parquet")
    config = recipe("h200-proxy", f"data.paths=[{tmp_path}/train-*.parquet]")
    assert [file.name for piece in plan_pieces(config.data) for file in piece.files] == [
        str(tmp_path / f"train-{number}.parquet") for number in range(2)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_a_dry_run_plans_every_candidate(name: str) -> None:
    config = recipe(name)
    table = made_up_table(config)
    vocabulary = config.data.vocab_size
    budget_ms = latency_budget_ms(table, config.latency, config.model, vocabulary)
    fitter = WidthFitter(table, config.latency, budget_ms, config.search.widths, config.model, vocabulary)
    proposer = Proposer(config.search, fitter, config.seed)
    history = run_serially(proposer)
    assert len(history) == config.search.trials and len(proposer.seed_designs) == 4
    assert {t.mutation for t in history} > {"seed", "random"} and len({t.width for t in history}) > 1
    assert min(t.parameters for t in history) > 4e6 and max(t.parameters for t in history) < 1.2e8
    assert len(ProfilingPlan(config.profiling, config.model, vocabulary).entry_keys()) == 5 * (4 + 2 + 1)


@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_compiled_ahead(name: str) -> None:
    config = recipe(name)
    warmed = {w.architecture.hidden_size for w in warm_ups(config)}
    trained = {*config.search.widths, *config.scaling.widths, config.scaling.holdout_width}
    assert warmed == trained
    holdout = repeat_block(config.scaling.block, config.scaling.holdout_depth)
    built = build_architecture(holdout, config.scaling.holdout_width, config.model, config.data.vocab_size)
    assert 2e7 < parameters(built)["total"] < 1e8


def test_a_layer_is_compiled_ahead_once_for_a_width_and_batch() -> None:
    planned = warm_ups(recipe(NAMES[0]))
    places = [(w.width, w.batch, w.sequence_length) for w in planned]
    assert len(set(places)) == len(places) == 2 * len(recipe(NAMES[0]).search.widths)
    assert {w.architecture.operators for w in planned} == {"DMAF"}


def test_the_width_in_the_middle_tunes_for_all_others() -> None:
    config = recipe(NAMES[0])
    assert [w.width for w in tuning(warm_ups(config))] == [512]
    sizes = OperatorSizes(head_dim=(config.model.head_dim // 2,))
    with_sizes = config.model_copy(update={"search": config.search.model_copy(update={"sizes": sizes})})
    assert {w.architecture.head_dim for w in tuning(warm_ups(with_sizes))} == {32, 64}


def test_each_searched_size_is_compiled_ahead() -> None:
    plain = recipe(NAMES[0])
    sizes = OperatorSizes(ffn_ratio=(2.0, plain.model.ffn_ratio), head_dim=(plain.model.head_dim // 2,))
    config = plain.model_copy(update={"search": plain.search.model_copy(update={"sizes": sizes})})
    warmed = {(w.architecture.ffn_size, w.architecture.head_dim) for w in set(warm_ups(config)) - set(warm_ups(plain))}
    assert {head_dim for _, head_dim in warmed} == {plain.model.head_dim, plain.model.head_dim // 2}
    widths = plain.search.widths
    assert {size for size, _ in warmed} >= {2 * width // 128 * 128 for width in widths}

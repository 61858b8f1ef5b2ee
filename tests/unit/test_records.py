"""Records of measurements: each says how it was made, and no page cites one that is older than the code it measures."""

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES.remove(ROOT / "docs" / "log.md")  # a diary: its entries are as old as they are
RECORDS = sorted(RESULTS.glob("*.json"))

_DECODING = ("src/flashslm/inference", "src/flashslm/models", "src/flashslm/benchmarking")
_TRAINING = ("src/flashslm/ops", "src/flashslm/models", "src/flashslm/training")
_PIPELINE = ("src/flashslm", "components", "pipelines", "configs/h200-proxy.yaml")
EXPERIMENTS = [path.stem for path in (ROOT / "configs" / "experiments").glob("*.yaml")]


def paths_of_experiment(name: str) -> tuple[str, ...]:
    return ("src/flashslm/experiments", *_TRAINING, f"configs/experiments/{name}.yaml")


# What a record of each subject measures: paths from the root.
MEASURED = {
    "decode": (*_DECODING, "benchmarks/decode.py"),
    "decode-vllm-plugin": (*_DECODING, "plugins/vllm"),
    "decode-int8": (*_DECODING, "benchmarks/decode.py"),
    "decode-variants": _DECODING,
    "latency_table": (*_DECODING, "src/flashslm/profiling", "benchmarks/latency_table.py"),
    "latency_table-int8": (*_DECODING, "src/flashslm/profiling", "benchmarks/latency_table.py"),
    "tilings-int8": ("src/flashslm/inference/fused", "benchmarks/tilings.py"),
    "tilings": ("src/flashslm/inference/fused", "benchmarks/tilings.py"),
    "step-plans": ("src/flashslm/inference/fused", "benchmarks/step_plans.py"),
    "evaluation": ("src/flashslm/evaluation", "src/flashslm/models", "benchmarks/evaluation.py"),
    "harness-equality": ("src/flashslm/evaluation", "src/flashslm/models", "benchmarks/harness_equality.py"),
    "gpu-tests": ("src/flashslm/ops", "src/flashslm/inference", "src/flashslm/models", "tests/gpu"),
    "gpu-tests-vllm": ("plugins/vllm", "src/flashslm/models", "tests/gpu/test_vllm_plugin.py"),
    "training": _TRAINING,
    "training-graph": _TRAINING,
    "training-commits": _TRAINING,
    "kill": ("src/flashslm/infra", "src/flashslm/launch", "src/flashslm/steps"),
    "outages": ("src/flashslm/infra", "src/flashslm/search/database.py", "benchmarks/outages.py"),
    "encode": ("src/flashslm/data/encoding.py", "benchmarks/encode.py"),
    "prepare-data": ("src/flashslm/data", "benchmarks/prepare_data.py"),
    **{name: paths_of_experiment(name) for name in EXPERIMENTS},
    "peers": (*_TRAINING, "src/flashslm/evaluation", "configs/experiments/peers.yaml", "benchmarks/peers.py"),
    "learning-rates": (*_TRAINING, "benchmarks/learning_rates.py"),
    "learning-rates-inputs": (*_TRAINING, "benchmarks/learning_rates.py"),
    "recall-filter": ("src/flashslm/search/recall_score.py", "src/flashslm/search/recall_tasks.py", *_TRAINING),
    **{
        f"search-proxies-{variant}": paths_of_experiment("search-proxies")
        for variant in ("normal-outputs", "long", "short16", "short16-constant", "short8")
    },
    "rank-agreement": (*paths_of_experiment("search-proxies"), "benchmarks/rank_agreement.py"),
    **dict.fromkeys(("proxy-pipeline", "proxy-pipeline-calibrated", "proxy-pipeline-random"), _PIPELINE),
    "demo": ("src/flashslm", "components", "pipelines", "configs/demo.yaml"),
    "images": ("images", "constraints.txt", "tests/containers"),
}
_COMMIT = re.compile(r"\b[0-9a-f]{7,40}\b")


def subject_of(record: Path) -> str:
    return record.stem.split("_nvidia")[0].split("_amd")[0].split("_intel")[0]


def commit_of(record: Path) -> str:
    """The newest commit that a record names."""
    found = _COMMIT.findall(str(json.loads(record.read_text())["commit"]))
    return str(found[-1]) if found else ""


def git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()


def has_history() -> bool:
    try:
        return git("rev-parse", "--is-shallow-repository") == "false"
    except (OSError, subprocess.CalledProcessError):
        return False


def changed_since(record: Path) -> str:
    """The newest commit that changed what the record measures; empty for a record as new as its code."""
    return git("log", "-1", "--format=%h %s", f"{commit_of(record)}..HEAD", "--", *MEASURED[subject_of(record)])


def paragraphs_that_cite(record: Path) -> list[tuple[str, str]]:
    """(page, paragraph) of every mention of a record."""
    found = []
    for page in PAGES:
        for paragraph in page.read_text(encoding="utf-8").split("\n\n"):
            if record.name in paragraph:
                found.append((page.name, paragraph))
    return found


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_a_record_says_how_and_from_what_it_was_made(record: Path) -> None:
    facts: dict[str, Any] = json.loads(record.read_text())
    assert subject_of(record) in MEASURED, "say in MEASURED which paths this subject measures"
    assert facts["command"] and facts["device"] and facts["versions"]
    assert commit_of(record) and "dirty" not in str(facts["commit"])
    assert all((ROOT / path).exists() for path in MEASURED[subject_of(record)])


@pytest.mark.skipif(not has_history(), reason="the history of commits is not here: clone without --depth")
@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.stem)
def test_pages_name_the_commit_of_a_record_older_than_its_code(record: Path) -> None:
    newer = changed_since(record)
    silent = [page for page, text in paragraphs_that_cite(record) if commit_of(record)[:7] not in text]
    assert not newer or not silent, f"{newer} is newer than the record: measure again, or name {commit_of(record)[:7]}"


def test_every_figure_of_the_headline_is_the_records() -> None:
    record = json.loads((RESULTS / "decode_nvidia-h200_2026-11-28.json").read_text())
    rows = {(row["preset"], row["context"]): row for row in record["latency"]}
    hybrid, dense = rows["nemotron-flash-1b", 8192], rows["qwen3-0.6b", 8192]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    ours_ms, same_shape_ms = hybrid["tpot_ms_median"], dense["tpot_ms_median"]
    peers = {peer["name"]: peer for peer in dense["peers"]}
    peer_ms, vllm_ms = peers["hf"]["tpot_ms_median"], peers["vllm"]["tpot_ms_median"]
    for text in (
        f"a token of Nemotron-Flash-1B takes {ours_ms:.2f} ms",
        f"takes {peer_ms:.2f} ms. Of this factor of {peer_ms / ours_ms:.1f} the decode engine is",
        f"the decode engine is {peer_ms / same_shape_ms:.1f} (Qwen3-0.6B's own shape takes",
        f"takes it {same_shape_ms:.2f} ms) and the architecture {same_shape_ms / ours_ms:.1f}.",
        f"vLLM 0.22 takes {vllm_ms:.2f} ms for Qwen3-0.6B, {vllm_ms / same_shape_ms:.1f} times this engine's time;",
    ):
        assert text in readme

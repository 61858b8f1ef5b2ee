"""benchmarks/decode.py and its plot, on sizes that take a moment."""

import json

import pytest

from benchmarks import decode as runner
from benchmarks import plot_decode
from flashslm.benchmarking import memory
from flashslm.benchmarking.peer import Peer, PeerResult
from flashslm.benchmarking.record_plot import save_beside
from flashslm.config import KernelsConfig


def fake_peer(peer):
    engine = "transformers (static cache, eager)"
    times = dict.fromkeys(("ttft_ms", "tpot_ms_median", "tpot_ms_p90", "tpot_ms_mean"), 1000.0)
    repeats = {"ttft_ms_repeats": (1000.0,), "tpot_ms_median_repeats": (1000.0,)}
    return PeerResult(preset=peer.case.preset, engine=engine, tokens_per_s=1.0, **times, **repeats)


def fake_peers(group):
    return list(map(fake_peer, group)), None


@pytest.fixture
def plan(make_case, qwen3, monkeypatch) -> runner.Plan:
    monkeypatch.setattr(memory, "free_bytes", lambda device: 10**6)
    shapes = [{"preset": "hybrid"}, {"preset": "attention", "architecture": qwen3}]
    return runner.Plan(
        KernelsConfig(),
        latency=tuple(make_case(**s, context=c, batch=1, repeats=1) for s in shapes for c in (10, 20)),
        throughput=tuple(make_case(**s, batch=1, repeats=1) for s in shapes),
        batches=tuple(make_case(**s, batch=b, repeats=1) for s in shapes for b in (1, 2)),
    )


@pytest.fixture
def record(plan, tmp_path, monkeypatch, capsys) -> dict:
    peers = []
    monkeypatch.setattr(runner, "measure_apart", lambda group: peers.extend(group) or fake_peers(group))
    monkeypatch.setattr(runner, "make_plan", lambda quick, setting: plan)
    monkeypatch.setenv("FLASHSLM_COMMIT", "0123456789abcdef")
    output = tmp_path / "results" / "decode.json"
    assert runner.main(["--output", str(output)]) == 0
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert json.loads(output.read_text(encoding="utf-8")) == found
    assert {p.name for p in peers} == {"hf"}
    assert [(p.case.preset, p.case.context) for p in peers] == [
        *(("qwen3-0.6b", 10), ("qwen3-0.6b", 20)),
        *(("attention", 10), ("attention", 20)),
    ]
    return found


def test_the_record(record):
    assert record["commit"] == "0123456789abcdef" and record["repeats"] == 1 and record["failed"] == []
    assert {"subject", "command", "device", "fingerprint", "versions", "date"} <= record.keys()
    latency = [(r["preset"], r["context"], [p["preset"] for p in r["peers"]]) for r in record["latency"]]
    assert latency[1:3] == [("hybrid", 20, ["qwen3-0.6b"]), ("attention", 10, ["attention"])]
    for row in record["latency"]:
        (peer,) = row["peers"]
        assert peer["name"] == "hf" and peer["ratio"] == pytest.approx(1000 / row["tpot_ms_median"])
        assert peer["ttft_ratio"] == pytest.approx(1000 / row["ttft_ms"])
    assert [r["batch"] for r in record["batches"]] == [1, 2, 1, 2]
    hybrid, attention = record["throughput"]
    assert hybrid["largest"] and hybrid["batch"] > 10
    assert record["throughput_ratio"] == pytest.approx(hybrid["tokens_per_s"] / attention["tokens_per_s"])


def test_the_plot_shows_the_record(record, tmp_path):
    source = tmp_path / "decode.json"
    source.write_text(json.dumps(record), encoding="utf-8")
    save_beside([source], plot_decode.plot)
    assert (tmp_path / "decode.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "decode.svg").read_text(encoding="utf-8")
    latency, operators, batches = plot_decode.plot(record).axes
    widths = [bar.get_width() for bar in latency.patches]
    assert widths[::2] == pytest.approx([r["tpot_ms_median"] for r in record["latency"]])
    assert widths[1::2] == [1000.0] * len(record["latency"])
    assert [t.get_text() for t in operators.get_legend().get_texts()][-2:] == ["embedding + head", "residual"]
    assert batches.lines[1].get_ydata().tolist() == [r["tokens_per_s"] for r in record["batches"][2:]]


def test_a_part_alone(plan, tmp_path):
    found = runner.Session(plan, tmp_path / "decode.json").run(("batches",))
    assert len(found["batches"]) == 4 and not found["latency"] and not found["throughput"]
    assert len(plot_decode.plot(found).axes) == 1


def test_a_failure_costs_nothing_else(plan, tmp_path, monkeypatch, capsys):
    def crowded(case, setting, largest):
        raise RuntimeError("no memory")

    monkeypatch.setattr(runner, "bench_throughput", crowded)
    monkeypatch.setattr(runner, "measure_apart", fake_peers)
    monkeypatch.setattr(runner, "make_plan", lambda quick, setting: plan)
    output = tmp_path / "decode.json"
    assert runner.main(["--output", str(output), "--parts", "throughput", "latency"]) == 1
    found = json.loads(output.read_text(encoding="utf-8"))
    assert [f["error"] for f in found["failed"]] == ["RuntimeError: no memory"] * 2
    assert found["failed"][0]["what"] == "throughput of hybrid, the largest batch"
    assert len(found["latency"]) == 4 and found["throughput_ratio"] is None


@pytest.fixture
def in_vllm(plan, tmp_path, monkeypatch) -> dict:
    """A record beside vLLM, whose measurements of the hybrid fail after the first."""

    def measure(group):
        assert len({(peer.name, peer.case.preset) for peer in group}) == 1
        if group[0].name == "vllm-plugin":
            return [fake_peer(group[0])], RuntimeError("no memory")
        return fake_peers(group)

    monkeypatch.setattr(runner, "measure_apart", measure)
    monkeypatch.setattr(runner, "find_peer", lambda name, case: Peer(name, case))
    monkeypatch.setattr(runner, "PEER_BATCHES_FROM", 2)
    return runner.Session(plan, tmp_path / "decode.json", ("vllm", "vllm-plugin")).run(("latency", "batches"))


def test_peers_in_vllm(in_vllm, tmp_path):
    """Each engine measures all of a model: what it has measured stays, also where it fails later."""
    beside = [(r["preset"], r["context"], [p["name"] for p in r["peers"]]) for r in in_vllm["latency"]]
    hybrid, dense = ["vllm"], ["vllm"]
    assert beside == [
        ("hybrid", 10, [*hybrid, "vllm-plugin"]), ("hybrid", 20, hybrid),
        ("attention", 10, dense), ("attention", 20, dense),
    ]  # fmt: skip
    batches = [(r["preset"], r["batch"], [p["name"] for p in r["peers"]]) for r in in_vllm["batches"]]
    assert batches == [("hybrid", 1, []), ("hybrid", 2, []), ("attention", 1, []), ("attention", 2, ["vllm"])]
    (failed,) = in_vllm["failed"]
    assert failed["what"] == "peer vllm-plugin of hybrid, 1 x 10, 1 x 20, 2 x 20"
    figure = plot_decode.plot(in_vllm)
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["hybrid", "attention", "attention in vLLM"]


def test_a_peer_that_cannot_be_measured_is_refused_first(plan, monkeypatch, capsys):
    monkeypatch.setattr(runner, "make_plan", lambda quick, setting: plan)
    with pytest.raises(SystemExit):
        runner.main(["--peers", "hf", "vllm"])
    assert "needs a GPU" in capsys.readouterr().err


def test_parts_that_a_quick_run_leaves_out_are_refused(capsys):
    with pytest.raises(SystemExit):
        runner.main(["--quick", "--parts", "batches"])
    assert "--quick has no batches: leave it out" in capsys.readouterr().err


def test_nothing_to_plot():
    with pytest.raises(ValueError, match="nothing to plot"):
        plot_decode.plot({"latency": [], "batches": []})


def test_the_plans():
    full, quick = (runner.make_plan(quick, KernelsConfig(decode="torch")) for quick in (False, True))
    assert {(case.preset, case.context) for case in full.latency} == {
        (name, context)
        for name in ("nemotron-flash-1b", "nemotron-flash-3b", "qwen3-0.6b", "qwen3-1.7b")
        for context in (1024, 8192)
    }
    assert [case.last_context for case in full.throughput] == [32_768] * 2
    assert [case.batch for case in full.batches][:7] == [1, 2, 4, 8, 16, 32, 64]
    assert full.setting == KernelsConfig(decode="torch")
    assert len({runner.find_peer("hf", case) for case in quick.latency}) == 1  # one compilation
    assert quick.setting == KernelsConfig(decode="torch", delta_rule="chunked", ssd="chunked")
    assert not quick.batches

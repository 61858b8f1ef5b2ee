"""Training on a mixture of data sets."""

from pathlib import Path

import pytest

from flashslm.infra.storage.object_store import Manifest
from flashslm.training.spec import OpenDataset
from flashslm.training.trainer import train
from tests.unit.training import tiny

OTHER = "s3://bucket/cas/ab/" + "ab" * 32
MIXTURE = [{"name": "own", "weight": 1}, {"name": "other", "weight": 3, "dataset": OTHER}]


@pytest.fixture(scope="module")
def fetch(tmp_path_factory: pytest.TempPathFactory) -> OpenDataset:
    directories = {
        name: tiny.write_dataset(tmp_path_factory.mktemp("d"), tokens) for name, tokens in ((OTHER, 900), ("", 6000))
    }

    def fetch(manifest: Manifest) -> Path:
        return directories[manifest.uri if manifest.uri == OTHER else ""]

    return fetch


def test_rows_count_what_was_read_of_each_source_through_stages(fetch: OpenDataset) -> None:
    stages = [{"from_step": 5, "sequence_length": 40, "batch_size": 2}]
    settings = tiny.config(mixture=MIXTURE, stages=stages, micro_batch_size=2)
    outcome = train(tiny.spec(settings), tiny.model(), fetch)
    for row in outcome.history:
        steps = int(row["step"])
        tokens = 64 * min(steps, 5) + 80 * max(0, steps - 5)
        assert row["tokens/own"] + row["tokens/other"] == tokens
    last = outcome.history[-1]
    assert last["tokens/other"] > last["tokens/own"] > 0
    first_stage = outcome.history[4]
    windows = (fetched_tokens(fetch, OTHER) - 1) // 16
    assert first_stage["epochs/other"] == pytest.approx(first_stage["tokens/other"] / 16 / windows)
    assert last["epochs/other"] > first_stage["epochs/other"]


def fetched_tokens(fetch: OpenDataset, uri: str) -> int:
    directory = fetch(Manifest(kind="dataset", uri=uri, sha256="ab" * 32, bytes=0))
    return tiny.TokenLoader(directory, "train", 16, 1, 0).num_tokens


def test_a_stopped_run_on_a_mixture_is_the_unstopped_one(fetch: OpenDataset, tmp_path: Path) -> None:
    spec = tiny.spec(tiny.config(mixture=MIXTURE, checkpoint_every_steps=3))
    whole = train(spec, tiny.model(), fetch)
    store = tiny.DirectoryStore(tmp_path)

    def stop(step: int, metrics: dict[str, float]) -> None:
        if step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(spec, tiny.model(), fetch, store, on_metrics=stop)
    resumed = train(spec, tiny.model(), fetch, store)
    assert resumed.resumed_from_step == 3
    assert resumed.curve() == whole.curve()


def test_one_source_alone_sees_its_own_text(fetch: OpenDataset) -> None:
    alone = train(tiny.spec(tiny.config(mixture=[MIXTURE[1]])), tiny.model(), fetch)
    assert alone.history[-1]["tokens/other"] == alone.tokens_seen
    assert "tokens/own" not in alone.history[-1]
    plain = train(tiny.spec(tiny.config()), tiny.model(), fetch)
    assert not any("/" in name and name.startswith(("tokens", "epochs")) for name in plain.history[-1])


def test_another_tokenizer_is_refused(fetch: OpenDataset, tmp_path: Path) -> None:
    for name in ("own", "other"):
        tiny.write_dataset(tmp_path / name)
        (tmp_path / name / "tokenizer").mkdir()
        (tmp_path / name / "tokenizer/tokenizer.json").write_text(name)
    spec = tiny.spec(tiny.config(mixture=MIXTURE))
    with pytest.raises(ValueError, match=r"the tokens of 'other' \(s3://.*\) are of another tokenizer"):
        train(spec, tiny.model(), lambda manifest: tmp_path / ("other" if manifest.uri == OTHER else "own"))

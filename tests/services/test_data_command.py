"""`flashslm data` on data sets that are in the store: by address, by manifest and by run."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.infra.settings import Settings
from flashslm.infra.storage.object_store import ObjectStore
from tests.unit.data.corpora import make_texts, prepare

pytestmark = pytest.mark.services


def test_a_stored_data_set_is_found_in_every_way(
    settings: Settings, store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in settings.as_env().items():
        monkeypatch.setenv(name, value)
    summary = prepare(tmp_path / "made", make_texts(40))
    manifest = store.put_tree(tmp_path / "made", "dataset")
    file = manifest.write(tmp_path / "runs/some-run/artifacts/dataset.json")
    for source in (manifest.uri, str(file), "some-run", str(tmp_path / "runs/some-run")):
        places = ["--home", str(tmp_path / "home"), "--runs", str(tmp_path / "runs"), "--json"]
        result = CliRunner().invoke(app, ["data", "stats", source, *places])
        assert result.exit_code == 0, (source, result.exception)
        (found,) = json.loads(result.stdout)["datasets"]
        assert found["splits"]["train"]["tokens"] == summary.train_tokens
    shown = CliRunner().invoke(app, ["data", "stats", source, *places[:-1]]).stdout
    assert shown.count("bytes_per_token") == 1, "per split only: the summary's is that of the validation split"
    fetched = {path.name for path in (tmp_path / "home/trees/files").rglob("*") if path.is_file()}
    assert {"dataset.json", "index.json", "documents.bin"} <= fetched
    assert not [name for name in fetched if name.startswith("shard")], "what is not read is not fetched"

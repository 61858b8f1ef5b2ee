"""A mixture's data set that is not stored is refused before any work."""

from pathlib import Path
from typing import Any

import pytest

from flashslm.config import RunConfig
from flashslm.infra.events import Events
from flashslm.infra.storage.errors import StoreError
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.steps import check_recipe
from flashslm.steps.context import StepContext

pytestmark = pytest.mark.services
NOTHING: Any = None


def check(store: ObjectStore, address: str) -> dict[str, Any]:
    mixture = [{"name": "own", "weight": 2}, {"name": "code", "weight": 1, "dataset": address}]
    config = RunConfig.model_validate({"name": "toy", "training": {"mixture": mixture}})
    events = Events("check_recipe", "check_recipe", None)
    return check_recipe.run(StepContext("check_recipe", config, NOTHING, store, NOTHING, events, {}, {}))


def test_the_address_of_a_stored_data_set_is_taken_and_others_are_refused(store: ObjectStore, tmp_path: Path) -> None:
    (tmp_path / "dataset.json").write_text("{}")
    manifest = store.put_tree(tmp_path, "dataset")
    assert Manifest.at(manifest.uri, "dataset").sha256 == manifest.sha256
    assert "valid" in check(store, manifest.uri)["summary"]
    unknown = f"s3://{store.bucket}/cas/ab/{'ab' * 32}"
    with pytest.raises(ValueError, match=rf"training.mixture\[1\].dataset: '{unknown}' \(code\) is not in the store"):
        check(store, unknown)
    with pytest.raises(StoreError, match="another bucket"):
        check(store, f"s3://elsewhere/cas/ab/{'ab' * 32}")

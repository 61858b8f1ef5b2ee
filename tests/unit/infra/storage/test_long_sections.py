"""Sections of any length: what is too long for a command line is an object."""

import json
from typing import Any

import pytest

from flashslm.config import RunConfig, from_step_json
from flashslm.infra.storage import long_sections
from flashslm.infra.storage.errors import ObjectCorrupt, ObjectMissing
from flashslm.launch.compiling import pipeline_arguments, with_short_sections


class FakeStore(dict[str, Any]):
    def put_json(self, key: str, value: Any) -> None:
        self[key] = value

    def get_json(self, key: str) -> tuple[Any, str] | None:
        return (self[key], "etag") if key in self else None


def no_store() -> Any:
    raise AssertionError("short sections need no store")


def test_a_recipe_of_ten_thousand_paths_has_short_arguments() -> None:
    paths = [f"part/{'长' * 40}-{i:05d}.jsonl" for i in range(10_000)]
    config = RunConfig.model_validate({"name": "x", "data": {"source": "files", "paths": paths}})
    store: Any = FakeStore()
    arguments = with_short_sections(pipeline_arguments(config, "code", "source"), lambda: store)
    assert sum(len(str(value)) for value in arguments.values()) < 100_000  # one process takes 131,072 bytes
    text = json.dumps({"seed": arguments["seed"], "data": arguments["data"]})
    assert from_step_json("prepare_data", long_sections.whole(text, store)).data.paths == tuple(paths)
    assert len(store) == 1


def test_short_sections_stay_and_equal_ones_have_equal_references() -> None:
    store: Any = FakeStore()
    assert long_sections.shortened({"a": 1}, no_store) == {"a": 1}
    assert long_sections.whole('{"seed": 0, "data": {"a": 1}}', no_store) == '{"seed": 0, "data": {"a": 1}}'
    long = {"paths": ["x" * 30_000]}
    first, second = (long_sections.shortened(long, lambda: store) for _ in range(2))
    assert first == second != long_sections.shortened(long | {"more": 1}, lambda: store)
    assert json.loads(long_sections.whole(json.dumps({"seed": 0, "data": first}), store)) == {"seed": 0, "data": long}


def test_a_section_that_is_lost_or_changed_is_an_error() -> None:
    store: Any = FakeStore()
    text = json.dumps({"data": long_sections.shortened({"paths": ["x" * 30_000]}, lambda: store)})
    key = next(iter(store))
    store[key] = "y" * 30_000
    with pytest.raises(ObjectCorrupt, match="is damaged: start the run again"):
        long_sections.whole(text, store)
    del store[key]
    with pytest.raises(ObjectMissing, match="is not in the store: start the run again"):
        long_sections.whole(text, store)

"""Arguments of any length: what is too long for a command line is an object."""

from typing import Any

import pytest

from flashslm.config import RunConfig, from_step_json
from flashslm.infra.storage import long_texts
from flashslm.infra.storage.s3 import ObjectCorrupt, ObjectMissing
from flashslm.launch.compiling import pipeline_arguments, with_short_texts


class FakeStore(dict[str, Any]):
    def put_json(self, key: str, value: Any) -> None:
        self[key] = value

    def get_json(self, key: str) -> tuple[Any, str] | None:
        return (self[key], "etag") if key in self else None


def no_store() -> Any:
    raise AssertionError("short texts need no store")


def test_a_recipe_of_ten_thousand_paths_has_short_arguments() -> None:
    paths = [f"part/{'长' * 40}-{i:05d}.jsonl" for i in range(10_000)]
    config = RunConfig.model_validate({"name": "x", "data": {"source": "files", "paths": paths}})
    store: Any = FakeStore()
    arguments = with_short_texts(pipeline_arguments(config, "code", "source"), lambda: store)
    assert sum(len(str(value)) for value in arguments.values()) < 100_000  # one process takes 131,072 bytes
    text = long_texts.whole(arguments["prepare_data_config"], store)
    assert from_step_json("prepare_data", text).data.paths == tuple(paths)
    assert len(store) == 2  # that of prepare_data and that of prepare_new_data


def test_short_texts_stay_and_equal_texts_have_equal_references() -> None:
    store: Any = FakeStore()
    assert long_texts.shortened("{}", no_store) == "{}" == long_texts.whole("{}", store)
    long = "x" * 30_000
    first, second = (long_texts.shortened(long, lambda: store) for _ in range(2))
    assert first == second and first != long_texts.shortened(long + "y", lambda: store)
    assert long_texts.whole(first, store) == long


def test_a_text_that_is_lost_or_changed_is_an_error() -> None:
    store: Any = FakeStore()
    reference = long_texts.shortened("x" * 30_000, lambda: store)
    key = next(iter(store))
    store[key] = "y" * 30_000
    with pytest.raises(ObjectCorrupt, match="is damaged: start the run again"):
        long_texts.whole(reference, store)
    del store[key]
    with pytest.raises(ObjectMissing, match="is not in the store: start the run again"):
        long_texts.whole(reference, store)

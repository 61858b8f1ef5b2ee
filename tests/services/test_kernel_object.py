"""Compiled kernels travel between machines through the real object store."""

import json

import pytest

from flashslm.ops import kernel_cache
from flashslm.steps import kernel_object
from flashslm.steps.kernel_object import shared_kernels

pytestmark = pytest.mark.services


@pytest.fixture
def machine(tmp_path, monkeypatch, request):
    """`machine(name)` makes this process one with an H200, whose cache is the directory of that name."""
    facts = {"gpu": "NVIDIA H200, 580", "torch": request.node.name}
    monkeypatch.setattr(kernel_object, "cache_facts", lambda: facts)
    monkeypatch.setattr(kernel_cache, "cache_facts", lambda: facts)
    kernel_cache.cache_key.cache_clear()

    def become(name):
        monkeypatch.setenv(kernel_cache.VARIABLE, str(tmp_path / name))
        return kernel_cache.cache_directory()

    yield become
    kernel_cache.cache_key.cache_clear()


def write(directory, name, text="kernel"):
    (directory / name).parent.mkdir(parents=True, exist_ok=True)
    (directory / name).write_text(text)


def files(directory):
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


def test_a_second_machine_starts_with_what_the_first_has_tuned(store, machine):
    first = machine("first")
    with shared_kernels(store):
        write(first, "winners/a.json")
        write(first, "triton/X/__grp__k.json", json.dumps({"child_paths": {"k.cubin": f"{first}/triton/X/k.cubin"}}))
        write(first, "triton/half.partial")
        write(first, "triton/X/k.llir")
    second = machine("second")
    with shared_kernels(store):
        assert files(second) == {"winners/a.json", "triton/X/__grp__k.json"}
        paths = json.loads((second / "triton/X/__grp__k.json").read_text())["child_paths"]
        assert paths == {"k.cubin": f"{second}/triton/X/k.cubin"}


def test_two_machines_at_once_lose_nothing(store, machine):
    first, second = machine("first"), machine("second")
    with shared_kernels(store):
        write(second, "winners/second.json")
        machine("first")
        with shared_kernels(store):
            write(first, "winners/first.json")
        machine("second")
    third = machine("third")
    with shared_kernels(store):
        assert files(third) == {"winners/first.json", "winners/second.json"}


def test_kernels_of_a_failed_step_are_kept(store, machine):
    first = machine("first")
    with pytest.raises(RuntimeError, match="no memory"), shared_kernels(store):
        write(first, "winners/a.json")
        raise RuntimeError("no memory")
    second = machine("second")
    with shared_kernels(store):
        assert files(second) == {"winners/a.json"}


def test_nothing_new_is_not_stored_again(store, machine, monkeypatch):
    first = machine("first")
    with shared_kernels(store):
        write(first, "winners/a.json")
    monkeypatch.setattr(kernel_object, "store_kernels", lambda _: pytest.fail("stored"))
    with shared_kernels(store):
        pass


def test_a_corrupt_object_costs_a_warning_and_is_replaced(store, machine, caplog):
    first = machine("first")
    store.put_json(f"kernels/{kernel_cache.cache_key()}.json", {"kind": "nonsense"})
    with shared_kernels(store):
        write(first, "winners/a.json")
    assert "compiled kernels were not fetched" in caplog.text


def test_without_a_gpu_nothing_is_asked_of_the_store(monkeypatch):
    monkeypatch.setattr(kernel_object, "cache_facts", lambda: {"gpu": ""})
    with shared_kernels(None):
        pass

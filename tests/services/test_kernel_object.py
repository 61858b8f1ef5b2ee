"""Compiled kernels travel between machines through the real object store."""

import json

import pytest
from botocore.exceptions import ClientError
from typer.testing import CliRunner

from flashslm.cli.app import app
from flashslm.experiments.experiment import TABLE_FILE
from flashslm.infra.storage.object_store import Manifest, ObjectStore
from flashslm.ops import kernel_cache
from flashslm.steps import kernel_object
from flashslm.steps.kernel_object import required_kernels, shared_kernels
from tests.unit.experiments import tiny

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
    own = {kernel_object.UNPACKED, kernel_object.UNPACKING}
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()} - own


def stored_once(store, machine):
    """A machine whose cache is in the store."""
    directory = machine("first")
    with shared_kernels(store):
        write(directory, "winners/a.json")
        write(directory, "triton/X/k.cubin", "binary")
    return directory


def with_another_file(store, manifest, damage, directory):
    """The manifest of a whole object with facts of another form, or with half an archive."""
    tree = store.get_tree(manifest, directory / "whole")
    changed = directory / "changed"
    changed.mkdir()
    archive, facts = (tree / kernel_object.ARCHIVE).read_bytes(), (tree / kernel_object.FACTS).read_text()
    (changed / kernel_object.ARCHIVE).write_bytes(archive[: len(archive) // 2] if damage == "archive" else archive)
    (changed / kernel_object.FACTS).write_text("{}" if damage == "facts" else facts)
    return store.put_tree(changed, "kernels", manifest.metadata)


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


def test_a_large_cache_travels_in_several_archives(store, machine, monkeypatch, tmp_path):
    monkeypatch.setattr(kernel_object, "ARCHIVE_BYTES", 10)
    first = machine("first")
    with shared_kernels(store):
        for number in range(30):
            write(first, f"triton/{number}/k.cubin", f"binary {number}")
    pointer, _ = store.get_json(kernel_object._pointer())
    tree = store.get_tree(Manifest.model_validate(pointer), tmp_path / "tree")
    assert len(list(tree.glob(f"*{kernel_object.ARCHIVE}"))) == 15
    second = machine("second")
    with shared_kernels(store):
        assert {(second / file).read_text() for file in files(second)} == {f"binary {number}" for number in range(30)}


def test_a_step_stores_and_a_machine_reads_what_is_new_alone(store, machine, monkeypatch):
    monkeypatch.setattr(kernel_object, "MAX_TREES", 3)
    packed, read = [], []
    pack, get_tree = kernel_object._pack, type(store).get_tree
    monkeypatch.setattr(kernel_object, "_pack", lambda store, *of: packed.append(of[0]) or pack(store, *of))
    monkeypatch.setattr(type(store), "get_tree", lambda *given: read.append(given[1].sha256) or get_tree(*given))
    names = [f"winners/{number}.json" for number in range(5)]
    for number, name in enumerate(names):
        write(machine("first"), name)
        kernel_object.store_kernels(store)
        machine("second")
        assert kernel_object.fetch_kernels(store) == set(names[: number + 1])
    assert packed == [{names[0]}, {names[1]}, {names[2]}, set(names[:4]), {names[4]}]
    assert len(read) == len(set(read)) == len(packed)
    third = machine("third")
    assert kernel_object.fetch_kernels(store) == files(third) == set(names)


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


def test_an_object_that_is_unpacked_here_is_not_read_again(store, machine, monkeypatch):
    stored_once(store, machine)
    second = machine("second")
    with shared_kernels(store):
        pass
    read = []
    get_tree = type(store).get_tree
    monkeypatch.setattr(type(store), "get_tree", lambda *given: read.append(given) or get_tree(*given))
    for directory in (second, machine("first")):  # the first machine has made it
        machine(directory.parent.name)
        with shared_kernels(store):
            assert files(directory) == {"winners/a.json", "triton/X/k.cubin"}
    assert not read
    (machine("second") / "triton/X/k.cubin").unlink()
    with shared_kernels(store):
        assert (second / "triton/X/k.cubin").read_text() == "binary"
    assert len(read) == 1


def test_what_a_neighbour_has_stored_is_not_stored_again(store, machine, monkeypatch):
    first = machine("first")
    with shared_kernels(store):
        write(first, "winners/a.json")
        with shared_kernels(store):  # another process that shares the cache, and ends before
            write(first, "winners/b.json")
        monkeypatch.setattr(kernel_object, "_pack", lambda *_: pytest.fail("packed"))


def test_a_process_that_is_killed_while_it_unpacks_leaves_no_half_file(store, machine, monkeypatch):
    stored_once(store, machine)
    second = machine("second")
    monkeypatch.setattr(kernel_object, "_move_paths", lambda *_: (_ for _ in ()).throw(OSError("killed")))
    with shared_kernels(store):
        assert files(second) == set()
    assert not list(second.parent.glob("new-*"))


def test_what_triton_is_writing_is_left_out(store, machine):
    first = machine("first")
    with shared_kernels(store):
        write(first, "triton/X/k.cubin")
        write(first, "triton/X/tmp.pid_12_ab/k.json")
        write(first, "triton/X/.k.json.0123.new")
    second = machine("second")
    with shared_kernels(store):
        assert files(second) == {"triton/X/k.cubin"}


@pytest.mark.parametrize("damage", ["pointer", "text", "tree", "facts", "archive"])
def test_an_object_that_cannot_be_read_costs_a_warning_and_is_replaced(store, machine, caplog, damage, tmp_path):
    first, pointer = stored_once(store, machine), f"kernels/{kernel_cache.cache_key()}.json"
    if damage == "tree":
        store.delete_tree(Manifest.model_validate(store.get_json(pointer)[0]))
    elif damage in ("facts", "archive"):
        manifest = with_another_file(store, Manifest.model_validate(store.get_json(pointer)[0]), damage, tmp_path)
        store.put_json(pointer, manifest.model_dump(mode="json"))
    else:
        body = b'{"kind": "nonsense"}' if damage == "pointer" else b"no JSON"
        store.client.put_object(Bucket=store.bucket, Key=pointer, Body=body)
    (first / kernel_object.UNPACKED).unlink()
    with shared_kernels(store):
        write(first, "winners/b.json")
    assert "compiled kernels were not fetched" in caplog.text
    assert "the stored kernels are replaced" in caplog.text
    second = machine("second")
    with shared_kernels(store):
        assert files(second) == {"winners/a.json", "winners/b.json", "triton/X/k.cubin"}


def test_an_experiment_takes_and_leaves_kernels_too(store, settings, machine, monkeypatch, tmp_path):
    stored_once(store, machine)
    second = machine("second")

    def run(experiment, dataset):
        assert files(second) == {"winners/a.json", "triton/X/k.cubin"}
        write(second, "winners/c.json")
        experiment.directory.mkdir(exist_ok=True)  # the command has made it, for its lock
        (experiment.directory / TABLE_FILE).write_text("a table")

    monkeypatch.setattr("flashslm.cli.experiment._tracking", lambda _: settings)
    monkeypatch.setattr("flashslm.experiments.experiment.Experiment.run", run)
    arguments = ["experiment", str(tiny.write(tmp_path, tiny.recipe())), "--output", str(tmp_path / "made")]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "a table" in result.stdout
    third = machine("third")
    with shared_kernels(store):
        assert "winners/c.json" in files(third)


def test_without_a_gpu_nothing_is_asked_of_the_store(monkeypatch):
    monkeypatch.setattr(kernel_object, "cache_facts", lambda: {"gpu": ""})
    with shared_kernels(None):
        pass


@pytest.fixture
def warm_command(settings, monkeypatch):
    """`flashslm kernels warm` on a machine with a GPU, with `warm` in place of its training steps."""

    def run(warm):
        monkeypatch.setattr("flashslm.hardware.pick_device", lambda _: "cuda")
        monkeypatch.setattr("flashslm.infra.stack.services.resolve_settings", lambda _: settings)
        monkeypatch.setattr("flashslm.steps.warm_kernels.warm", lambda *_: warm())
        return CliRunner().invoke(app, ["kernels", "warm", "--config", "configs/smoke.yaml", "--workers", "1"])

    return run


def test_the_command_that_warms_kernels_stores_them(warm_command, machine, store):
    first = machine("first")
    result = warm_command(lambda: write(first, "winners/a.json"))
    assert result.exit_code == 0, result.exception
    second = machine("second")
    with shared_kernels(store):
        assert files(second) == {"winners/a.json"}


@pytest.mark.parametrize("refused", ["away", "denied", "disk"])
def test_the_command_fails_when_the_kernels_are_not_stored(warm_command, machine, monkeypatch, settings, refused):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    def deny(*_, **__):
        raise ClientError({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, "PutObject")

    first = machine("first")
    if refused == "disk":
        monkeypatch.setattr(kernel_object, "_pack", fail)
    else:
        away = settings.model_copy(update={"endpoint_url": "http://127.0.0.1:9", "stack_file": "", "patience_s": 0.0})
        unusable = ObjectStore(settings if refused == "denied" else away)
        if refused == "denied":
            unusable.client.meta.events.register("before-sign.s3.PutObject", deny)
        monkeypatch.setattr("flashslm.infra.storage.object_store.ObjectStore", lambda _: unusable)
    result = warm_command(lambda: write(first, "winners/a.json"))
    assert result.exit_code == 1
    assert "compiled kernels were not stored: " in str(result.exception)
    assert f"1 files of them are in {first} on this machine alone" in str(result.exception)


def test_kernels_of_a_command_that_fails_are_stored_and_its_error_is_the_one(warm_command, machine, store):
    first = machine("first")

    def warm():
        write(first, "winners/a.json")
        raise RuntimeError("no memory")

    assert str(warm_command(warm).exception) == "no memory"
    second = machine("second")
    with shared_kernels(store):
        assert files(second) == {"winners/a.json"}


def test_without_the_name_of_the_gpu_nothing_is_warmed(monkeypatch):
    monkeypatch.setattr(kernel_object, "cache_facts", lambda: {"gpu": ""})
    with pytest.raises(ValueError, match="nvidia-smi does not name a GPU"), required_kernels(None):
        pytest.fail("warmed")

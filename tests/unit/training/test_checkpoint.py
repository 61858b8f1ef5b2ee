import json
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from safetensors import safe_open
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

from flashslm.infra.storage.errors import StoreUnavailable
from flashslm.training.checkpoint import CheckpointStore
from flashslm.training.safetensors_writer import SafetensorsWriter
from tests.unit.training.tiny import DirectoryStore

Loaded = tuple[int, dict[str, torch.Tensor], dict[str, Any], list[dict[str, float]]]


def weights(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.full((2, 3), step / 3)}


def save(checkpoints: CheckpointStore, step: int, loss_nats: float | None = None) -> None:
    rows = [{"step": step, "loss_nats": 1 / 3}]
    checkpoints.save(step, weights(step), {"train_time_s": step / 10}, rows, loss_nats)
    checkpoints.finish()


def load(checkpoints: CheckpointStore, like: dict[str, torch.Tensor] | None = None) -> Loaded | None:
    """Into tensors of other values."""
    targets = {name: torch.full_like(tensor, 9) for name, tensor in (like or weights(0)).items()}
    found = checkpoints.load_latest(lambda: targets)
    return found and (found[0].step, targets, found[0].values, found[1])


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(DirectoryStore(tmp_path), "run", keep=2)


def tree_file(checkpoints: CheckpointStore, step: int, name: str) -> Path:
    pointer, _ = checkpoints.store.get_json(f"checkpoints/run/{step:08d}.json")
    return checkpoints.store.root / "cas" / pointer["trees"][0]["sha256"] / name


def test_a_state_comes_back_bit_by_bit(checkpoints: CheckpointStore) -> None:
    tensors = {"a": torch.tensor([0.1, -0.0, 3e-39]), "b": torch.arange(3, dtype=torch.uint8), "c": torch.tensor(7.0)}
    checkpoints.save(5, tensors, {"train_time_s": 0.1 + 0.2}, [])
    checkpoints.finish()
    step, loaded, values, rows = load(checkpoints, tensors)
    assert step == 5 and values == {"train_time_s": 0.1 + 0.2} and rows == []
    assert all(torch.equal(loaded[k].view(-1), t.view(-1)) and loaded[k].dtype == t.dtype for k, t in tensors.items())
    assert torch.signbit(loaded["a"][1])


def test_a_file_is_what_torchs_own_writer_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the whole file in memory, which torch's has while no other thread runs."""
    tensors = {
        "w": torch.arange(6.0).reshape(3, 2),
        "odd": torch.arange(3, dtype=torch.uint8),
        "step": torch.tensor(7.0),
    }
    dcp.save(
        tensors, storage_writer=HuggingFaceStorageWriter(str(tmp_path / "torch"), save_distributed=True), no_dist=True
    )
    monkeypatch.setattr("safetensors.torch.save", lambda *_, **__: pytest.fail("the file was made in memory"))
    dcp.save(tensors, storage_writer=SafetensorsWriter(str(tmp_path / "ours")), no_dist=True)
    (expected,), (written,) = ((tmp_path / name).glob("*.safetensors") for name in ("torch", "ours"))
    assert written.name == expected.name
    with safe_open(written, "pt") as ours, safe_open(expected, "pt") as theirs:
        assert set(ours.keys()) == set(theirs.keys()) == set(tensors)
        assert all(torch.equal(ours.get_tensor(name), tensor) for name, tensor in tensors.items())
        about = [file.metadata() for file in (ours, theirs)]
    for metadata in about:
        metadata["DCP_SHARDING_INFO"] = json.loads(metadata["DCP_SHARDING_INFO"])
    assert about[0] == about[1]


def test_what_is_saved_is_the_state_at_the_call(checkpoints: CheckpointStore, monkeypatch) -> None:
    """Training continues with the same tensors while they are stored."""
    may_store, put_tree = threading.Event(), checkpoints.store.put_tree
    monkeypatch.setattr("flashslm.training.checkpoint._TRAINING_WAITS_S", 0.0)
    monkeypatch.setattr(checkpoints.store, "put_tree", lambda *given: may_store.wait(30) and put_tree(*given))
    tensors = weights(3)
    checkpoints.save(3, tensors, {}, [])
    tensors["w"].fill_(-1)
    assert load(CheckpointStore(checkpoints.store, "run", keep=2)) is None, "the pointer comes last"
    may_store.set()
    checkpoints.finish()
    assert torch.equal(load(checkpoints)[1]["w"], weights(3)["w"])


def test_nothing_saved_is_none(checkpoints: CheckpointStore) -> None:
    assert load(checkpoints) is None


def test_runs_do_not_see_each_other(checkpoints: CheckpointStore) -> None:
    save(checkpoints, 5)
    other = CheckpointStore(checkpoints.store, "run2", keep=2)
    assert load(other) is None
    for step in (5, 6, 7):  # prunes step 5 of run2
        save(other, step)
    assert load(checkpoints)[0] == 5


def kept(checkpoints: CheckpointStore) -> list[int]:
    keys = [key for key in checkpoints.store.list("checkpoints/run/") if "/rows/" not in key]
    assert len(list((checkpoints.store.root / "cas").iterdir())) == len(keys), "a pointer has one tree"
    return [int(Path(key).stem) for key in keys]


def test_only_the_newest_are_kept_with_their_trees(checkpoints: CheckpointStore) -> None:
    for step in (1, 2, 3, 10):
        save(checkpoints, step)
    assert kept(checkpoints) == [3, 10]


def test_the_best_is_kept_beside_the_newest(checkpoints: CheckpointStore) -> None:
    for step, loss_nats in ((1, 3.0), (2, 2.5), (3, None), (4, 2.7), (5, None), (6, 2.6)):
        save(checkpoints, step, loss_nats)
    assert kept(checkpoints) == [2, 5, 6]
    save(checkpoints, 7, 2.4)
    assert kept(checkpoints) == [6, 7]


def test_rows_are_stored_once_and_come_back_whole(checkpoints: CheckpointStore) -> None:
    for step in (1, 2, 3):
        save(checkpoints, step)
    stored = [checkpoints.store.get_json(key)[0] for key in checkpoints.store.list("checkpoints/run/rows/")]
    assert [[row["step"] for row in rows] for rows in stored] == [[1], [2], [3]]
    assert [row["step"] for row in load(checkpoints)[3]] == [1, 2, 3]


@pytest.mark.parametrize("damage", ["tensors", "missing", "pointer", "no JSON"])
def test_a_damaged_newest_falls_back_with_a_warning(checkpoints: CheckpointStore, damage: str) -> None:
    save(checkpoints, 1)
    save(checkpoints, 2)
    (file,) = tree_file(checkpoints, 2, "").glob("*.safetensors")
    if damage == "tensors":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        checkpoints.store.delete_tree(checkpoints._read("checkpoints/run/00000002.json").trees[0])
    elif damage == "pointer":
        checkpoints.store.put_json("checkpoints/run/00000002.json", {"kind": "checkpoint"})
    else:
        checkpoints.store.damage("checkpoints/run/00000002.json")
    with pytest.warns(UserWarning, match="00000002"):
        step, loaded, _, rows = load(checkpoints)
    assert step == 1 and torch.equal(loaded["w"], weights(1)["w"]) and [row["step"] for row in rows] == [1]


@pytest.mark.parametrize("content", ["{", "[1]", "7"])
def test_damaged_rows_cost_the_curve_a_gap_and_not_the_weights(checkpoints: CheckpointStore, content: str) -> None:
    for step in (1, 2, 3):
        save(checkpoints, step)
    (checkpoints.store.root / "checkpoints/run/rows/00000002.json").write_text(content)
    with pytest.warns(UserWarning, match=r"rows of metrics are lost, .*00000002"):
        step, loaded, _, rows = load(checkpoints)
    assert step == 3 and torch.equal(loaded["w"], weights(3)["w"]) and [row["step"] for row in rows] == [1, 3]


def test_a_run_that_prunes_what_another_one_reads_does_not_send_it_to_the_beginning(
    checkpoints: CheckpointStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two runs of the same work share their checkpoints: one is two further when the other has begun to fetch."""
    for step in (1, 2):
        save(checkpoints, step)
    fetch = checkpoints.store.get_tree

    def late(*arguments: Any) -> Path:
        monkeypatch.setattr(checkpoints.store, "get_tree", fetch)
        other = CheckpointStore(checkpoints.store, "run", keep=2)
        for step in (3, 4):
            save(other, step)
        return fetch(*arguments)

    monkeypatch.setattr(checkpoints.store, "get_tree", late)
    with pytest.warns(UserWarning, match="00000002.json is unusable"):
        assert load(checkpoints)[0] == 4


def test_the_newest_rows_are_trained_again(checkpoints: CheckpointStore) -> None:
    for step in (1, 2):
        save(checkpoints, step)
    checkpoints.store.damage("checkpoints/run/rows/00000002.json")
    with pytest.warns(UserWarning, match="00000002.json is unusable, trying another: its rows of metrics"):
        assert load(checkpoints)[0] == 1


def test_a_pointer_that_is_damaged_during_training_does_not_end_it(checkpoints: CheckpointStore) -> None:
    for step in (1, 2):
        save(checkpoints, step)
    checkpoints.store.damage("checkpoints/run/00000001.json")
    save(checkpoints, 3, loss_nats=2.0)
    assert [key for key in checkpoints.store.list("checkpoints/run/") if "/rows/" not in key] == [
        "checkpoints/run/00000002.json",
        "checkpoints/run/00000003.json",
    ]


def test_a_damaged_checkpoint_neither_survives_nor_pushes_out_a_good_one(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(DirectoryStore(tmp_path), "run", keep=2)
    for step in (1, 4):
        save(checkpoints, step)
    file = tree_file(checkpoints, 4, "owner.json")
    file.write_text(json.dumps({}))
    with pytest.warns(UserWarning):
        load(checkpoints)
    for step in (2, 3, 4):  # the resumed run makes step 4 again, with the same content
        save(checkpoints, step)
    step, _, _, rows = load(checkpoints)
    assert step == 4 and [row["step"] for row in rows] == [1, 2, 3, 4]
    assert kept(checkpoints) == [3, 4]


def test_a_save_cut_off_before_its_pointer_leaves_the_one_before(checkpoints: CheckpointStore, monkeypatch) -> None:
    save(checkpoints, 1)
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.store, "put_json", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError):
            save(checkpoints, 2)
    assert load(checkpoints)[0] == 1


def test_an_unreachable_store_is_an_error_not_a_fresh_start(checkpoints: CheckpointStore, monkeypatch) -> None:
    save(checkpoints, 1)

    def unavailable(*_: object) -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(checkpoints.store, "get_tree", unavailable)
    with pytest.raises(StoreUnavailable):
        load(checkpoints)


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointStore(DirectoryStore(tmp_path), "run", keep=0)

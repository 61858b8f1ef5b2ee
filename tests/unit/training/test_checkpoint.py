import json
from pathlib import Path

import pytest
import torch

from flashslm.infra.storage.object_store import StoreUnavailable
from flashslm.training.checkpoint import CheckpointStore, TrainingState
from tests.unit.training.tiny import DirectoryStore


def state(step: int) -> TrainingState:
    return TrainingState({"w": torch.full((2, 3), step / 3)}, {"history": [{"step": step, "loss_nats": 1 / 3}]})


@pytest.fixture
def checkpoints(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(DirectoryStore(tmp_path), "run", keep=2)


def tree_file(checkpoints: CheckpointStore, step: int, name: str) -> Path:
    pointer, _ = checkpoints.store.get_json(f"checkpoints/run/{step:08d}.json")
    return checkpoints.store.root / "cas" / pointer["sha256"] / name


def test_a_state_comes_back_bit_by_bit(checkpoints: CheckpointStore) -> None:
    tensors = {"a": torch.tensor([0.1, -0.0, 3e-39]), "b": torch.arange(3, dtype=torch.uint8), "c": torch.tensor(7.0)}
    checkpoints.save(5, TrainingState(tensors, {"train_time_s": 0.1 + 0.2}))
    step, loaded = checkpoints.load_latest()
    assert step == 5 and loaded.values == {"train_time_s": 0.1 + 0.2}
    assert all(torch.equal(loaded.tensors[k], t) and loaded.tensors[k].dtype == t.dtype for k, t in tensors.items())


def test_nothing_saved_is_none(checkpoints: CheckpointStore) -> None:
    assert checkpoints.load_latest() is None


def test_runs_do_not_see_each_other(checkpoints: CheckpointStore) -> None:
    checkpoints.save(5, state(5))
    other = CheckpointStore(checkpoints.store, "run2", keep=2)
    assert other.load_latest() is None
    other.save(5, state(5))
    other.save(6, state(6))
    other.save(7, state(7))  # prunes step 5 of run2
    assert checkpoints.load_latest()[0] == 5


def test_only_the_newest_are_kept_with_their_trees(checkpoints: CheckpointStore) -> None:
    for step in (1, 2, 3, 10):
        checkpoints.save(step, state(step))
    assert checkpoints.store.list("checkpoints/") == ["checkpoints/run/00000003.json", "checkpoints/run/00000010.json"]
    assert len(list((checkpoints.store.root / "cas").iterdir())) == 2


@pytest.mark.parametrize("damage", ["tensors", "missing", "pointer"])
def test_a_damaged_newest_falls_back_with_a_warning(checkpoints: CheckpointStore, damage: str) -> None:
    checkpoints.save(1, state(1))
    checkpoints.save(2, state(2))
    file = tree_file(checkpoints, 2, "state.safetensors")
    if damage == "tensors":
        file.write_bytes(file.read_bytes()[:-1] + b"x")
    elif damage == "missing":
        checkpoints.store.delete_tree(checkpoints._manifest("checkpoints/run/00000002.json"))
    else:
        checkpoints.store.put_json("checkpoints/run/00000002.json", {"kind": "checkpoint"})
    with pytest.warns(UserWarning, match="00000002"):
        step, loaded = checkpoints.load_latest()
    assert step == 1 and torch.equal(loaded.tensors["w"], state(1).tensors["w"])


def test_a_damaged_checkpoint_neither_survives_nor_pushes_out_a_good_one(tmp_path: Path) -> None:
    checkpoints = CheckpointStore(DirectoryStore(tmp_path), "run", keep=2)
    for step in (1, 4):
        checkpoints.save(step, state(step))
    file = tree_file(checkpoints, 4, "state.json")
    file.write_text(json.dumps({}))
    with pytest.warns(UserWarning):
        checkpoints.load_latest()
    for step in (2, 3, 4):  # the resumed run makes step 4 again, with the same content
        checkpoints.save(step, state(step))
    assert checkpoints.load_latest()[0] == 4
    assert len(checkpoints.store.list("checkpoints/run/")) == 2


def test_a_save_cut_off_before_its_pointer_leaves_the_one_before(checkpoints: CheckpointStore, monkeypatch) -> None:
    checkpoints.save(1, state(1))
    with monkeypatch.context() as patched:
        patched.setattr(checkpoints.store, "put_json", lambda *_: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError):
            checkpoints.save(2, state(2))
    assert checkpoints.load_latest()[0] == 1


def test_an_unreachable_store_is_an_error_not_a_fresh_start(checkpoints: CheckpointStore, monkeypatch) -> None:
    checkpoints.save(1, state(1))

    def unavailable(*_: object) -> None:
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(checkpoints.store, "get_tree", unavailable)
    with pytest.raises(StoreUnavailable):
        checkpoints.load_latest()


def test_keep_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="keep is 0"):
        CheckpointStore(DirectoryStore(tmp_path), "run", keep=0)

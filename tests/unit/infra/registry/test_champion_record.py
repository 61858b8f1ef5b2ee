"""The record of a champion: what a promotion, a roll-back and a delivery make of it, and what damage does."""

import pytest

from flashslm.infra.registry import champion_record
from flashslm.infra.registry.champion_record import ChampionRecord
from flashslm.infra.storage import lease
from flashslm.infra.storage.object_store import ObjectCorrupt
from tests.unit.launch.schedule.memory_store import MemoryStore


class UnreadableStore(MemoryStore):
    """Its server answers 500 for the objects that are named here, until they are removed."""

    def __init__(self) -> None:
        super().__init__()
        self.unreadable: set[str] = set()

    def get_bytes(self, key: str) -> tuple[bytes, str] | None:
        if key in self.unreadable and key in self.objects:
            raise ObjectCorrupt(f"cannot read '{key}'")
        return super().get_bytes(key)


def test_changes_keep_what_is_pending_in_order() -> None:
    first = ChampionRecord().changed("promotion", "1", "a" * 64, notify=True)
    second = first.changed("promotion", "2", "b" * 64, notify=True)
    assert (second.champion, second.previous) == ("2", "1")
    assert [(n.version, n.previous_version) for n in second.pending] == [("1", ""), ("2", "1")]
    assert second.announced_again() == second, "it is pending already"
    sent = second.delivered(second.pending[0]).delivered(second.pending[1])
    assert sent.pending == () and sent.champion == "2"
    assert [n.version for n in sent.announced_again().pending] == ["2"]
    back = second.changed("rollback", "1", "a" * 64, notify=False)
    assert (back.champion, back.previous, back.event, back.pending) == ("1", "2", "rollback", ())


def test_of_two_puts_one_wins_and_a_repeated_one_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    store = MemoryStore()
    record = ChampionRecord().changed("promotion", "1", "a" * 64, notify=False)
    assert champion_record.put(store, "m", record, "")  # type: ignore[arg-type]
    assert not champion_record.put(store, "m", record, "")  # type: ignore[arg-type]
    stored, etag = champion_record.read(store, "m")  # type: ignore[arg-type]
    put_json = store.put_json

    def answer_is_lost(key: str, value: object, **condition: object) -> str:
        put_json(key, value, **condition)  # type: ignore[arg-type]
        return put_json(key, value, **condition)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "put_json", answer_is_lost)
    assert stored and champion_record.put(store, "m", stored, etag), "the client sent it twice"  # type: ignore[arg-type]


def test_what_the_server_cannot_read_blocks_nothing(caplog: pytest.LogCaptureFixture) -> None:
    store = UnreadableStore()
    record = ChampionRecord().changed("promotion", "1", "a" * 64, notify=False)
    assert champion_record.put(store, "m", record, "")  # type: ignore[arg-type]
    with lease.hold(store, "leases/x.json"):  # type: ignore[arg-type]
        pass
    store.unreadable = set(store.objects)
    assert champion_record.read(store, "m") == (None, "")  # type: ignore[arg-type]
    assert "cannot read" in caplog.text and "MLflow's aliases count" in caplog.text
    assert champion_record.put(store, "m", record, "")  # type: ignore[arg-type]
    with lease.hold(store, "leases/x.json", wait_s=0.0):  # type: ignore[arg-type]
        pass

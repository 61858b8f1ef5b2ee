"""Which version of a model is champion: one object in the store, changed whole by compare-and-set.

It holds the champion, the one before it and the notifications that the hook has not received yet. So a process that is
killed leaves the old state or the new one, and the next process delivers what is due. MLflow's aliases follow it.
"""

import hashlib
import json
import logging
import uuid
from collections.abc import Callable
from typing import Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from flashslm.infra.storage.errors import PreconditionFailed
from flashslm.infra.storage.object_store import ObjectStore

Event = Literal["promotion", "rollback"]
PREFIX = "registry/"
_log = logging.getLogger(__name__)


class Notification(BaseModel):
    """What the promotion hook has to hear; `delivery` is the same in every attempt."""

    model_config = ConfigDict(frozen=True)

    delivery: str
    event: Event
    version: str
    previous_version: str  # "" = there was no champion


class ChampionRecord(BaseModel):
    """The state of one model; versions are MLflow's numbers, "" = there is none."""

    model_config = ConfigDict(frozen=True)

    champion: str = ""
    champion_sha256: str = ""  # of its object: a registry that counts from 1 again has other versions of these numbers
    previous: str = ""
    event: Event | Literal[""] = ""  # that made the champion
    pending: tuple[Notification, ...] = ()  # oldest first
    revision: str = ""  # of this state, which distinguishes our own put from another's

    def changed(self, event: Event, champion: str, sha256: str, notify: bool) -> "ChampionRecord":
        """The state after a promotion or a roll-back. A silent one makes what is pending untrue."""
        news = Notification(delivery=uuid.uuid4().hex, event=event, version=champion, previous_version=self.champion)
        return ChampionRecord(
            champion=champion,
            champion_sha256=sha256,
            previous=self.champion,
            event=event,
            pending=(*self.pending, news) if notify else (),
        )

    def announced_again(self) -> "ChampionRecord":
        """With a notification of the last event, unless one is pending."""
        if self.pending or not self.champion:
            return self
        news = Notification(
            delivery=uuid.uuid4().hex,
            event=self.event or "promotion",
            version=self.champion,
            previous_version=self.previous,
        )
        return self.model_copy(update={"pending": (news,)})

    def delivered(self, notification: Notification) -> "ChampionRecord":
        """Without a notification that has been received."""
        left = tuple(other for other in self.pending if other.delivery != notification.delivery)
        return self.model_copy(update={"pending": left})


Stored = tuple[ChampionRecord | None, str]  # None where there is no (readable) record; the etag, "" = no object


def read(store: ObjectStore, name: str) -> Stored:
    """The record of a model. A damaged one is copied aside with a warning and counts as absent."""
    found = store.get_bytes(key_of(name))
    if found is None:
        return None, ""
    content, etag = found
    try:
        return _parse(content), etag
    except ValueError as error:
        aside = f"{PREFIX}{quote(name, safe='')}.damaged-{hashlib.sha256(content).hexdigest()[:12]}"
        if not store.list(aside):
            store.put_json(aside, {"base16": content.hex()})
            why = " ".join(str(error).split())
            _log.warning(
                "%s is damaged (%s): it is kept as %s, and MLflow's aliases count. A notification that was pending is "
                "lost: `flashslm models promote VERSION` of the champion sends it again",
                key_of(name),
                why,
                aside,
            )
        return None, etag


def put(store: ObjectStore, name: str, record: ChampionRecord, etag: str) -> bool:
    """Replace the record whose etag was read ("" = there was no object); False if it has changed meanwhile."""
    record = record.model_copy(update={"revision": uuid.uuid4().hex})
    values = record.model_dump(mode="json")
    document = values | {"sha256": _digest(values)}
    try:
        if etag:
            store.put_json(key_of(name), document, if_match=etag)
        else:
            store.put_json(key_of(name), document, if_absent=True)
    except PreconditionFailed:  # or ours arrived, and its answer did not
        found, _ = read(store, name)
        return found is not None and found.revision == record.revision
    return True


def change(store: ObjectStore, name: str, to: Callable[[ChampionRecord], ChampionRecord]) -> None:
    """Replace an existing record by what `to` makes of it, again if another process changed it meanwhile."""
    while True:
        record, etag = read(store, name)
        if record is None:
            return
        wanted = to(record)
        if wanted == record or put(store, name, wanted, etag):
            return


def key_of(name: str) -> str:
    """The object that holds the record of a model."""
    return f"{PREFIX}{quote(name, safe='')}.json"


def _parse(content: bytes) -> ChampionRecord:
    values = json.loads(content)
    if not isinstance(values, dict) or values.pop("sha256", "") != _digest(values):
        raise ValueError("its content is not what its sha256 says")
    return ChampionRecord.model_validate(values)


def _digest(values: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()

"""The tables of `flashslm models list`: one per data set, since figures of different data do not compare."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from rich.table import Table

from flashslm.infra.registry.model_registry import ModelVersion

COLUMNS = ("version", "aliases", "perplexity", "ms/token", "parameters", "registered")


class VersionTable(NamedTuple):
    """What a group of versions was measured on, what is compared at a glance, and a line for each version's origin."""

    data: str
    table: Table
    origins: list[str]


def version_tables(versions: Sequence[ModelVersion]) -> Iterator[VersionTable]:
    """One for each data set; groups and versions with the newest first. Each fits 80 columns."""
    newest_first = sorted(versions, key=lambda v: int(v.version), reverse=True)
    order = list(dict.fromkeys(_measured_on(v) for v in newest_first))
    grouped = groupby(sorted(newest_first, key=lambda v: order.index(_measured_on(v))), _measured_on)
    for sha256, members in grouped:
        listed = list(members)
        yield VersionTable(_data_text(sha256, listed[0]), _table(listed), [_origin(v) for v in listed])


def _measured_on(version: ModelVersion) -> str:
    return str(version.facts.get("dataset_sha256", ""))


def _data_text(sha256: str, version: ModelVersion) -> str:
    if not sha256:
        return "measured on data that is not recorded"
    named = next((m for m in version.lineage.data if m.sha256 == sha256), None)
    if named is None:  # of a retraining: measured on what its ancestors were
        return f"measured on data {sha256[:12]}"
    facts = named.metadata
    tokens = f", {facts['train_tokens']:,} train tokens" if "train_tokens" in facts else ""
    return f"measured on data {sha256[:12]} ({facts.get('source', named.kind)}{tokens})"


def _table(versions: Sequence[ModelVersion]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in COLUMNS:
        table.add_column(column, overflow="fold", no_wrap=column != "aliases")
    for v in versions:
        table.add_row(*_row(v))
    return table


def _row(v: ModelVersion) -> Iterator[str]:
    yield v.version
    yield ", ".join(v.aliases)
    for name, form in (("perplexity", ".3f"), ("latency_ms", ".4g"), ("parameters", ",")):
        yield format(v.facts[name], form) if name in v.facts else "-"
    yield time.strftime("%Y-%m-%d %H:%M", time.localtime(v.created_ms / 1000))


def _origin(v: ModelVersion) -> str:
    """Commit, parent, device and hook, as far as they are known."""
    parent = f"trained from version {v.lineage.parent}" if v.lineage.parent else v.lineage.source
    known = [f"commit {v.lineage.commit[:8]}" if v.lineage.commit else "", parent]
    known += [f"timed on device {v.facts['device']}" if "device" in v.facts else "", f"hook {v.hook}" if v.hook else ""]
    return f"version {v.version}: {'; '.join(filter(None, known)) or 'no origin is recorded'}"

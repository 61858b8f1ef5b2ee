"""The tables of `flashslm models list`: one per data set, since figures of different data do not compare."""

import time
from collections.abc import Iterator, Sequence
from itertools import groupby

from rich.table import Table

from flashslm.infra.registry.model_registry import ModelVersion

COLUMNS = (
    "version",
    "aliases",
    "perplexity",
    "ms/token",
    "device",
    "parameters",
    "registered",
    "commit",
    "from",
    "hook",
)
_FOLDED = {"aliases", "device", "hook"}


def version_tables(versions: Sequence[ModelVersion]) -> Iterator[tuple[str, Table]]:
    """What a group of versions was measured on, and its table; groups and versions with the newest first."""
    newest_first = sorted(versions, key=lambda v: int(v.version), reverse=True)
    order = list(dict.fromkeys(_measured_on(v) for v in newest_first))
    grouped = groupby(sorted(newest_first, key=lambda v: order.index(_measured_on(v))), _measured_on)
    for sha256, members in grouped:
        listed = list(members)
        yield _data_text(sha256, listed[0]), _table(listed)


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
        table.add_column(column, overflow="fold", no_wrap=column not in _FOLDED)
    for v in versions:
        table.add_row(*_row(v))
    return table


def _row(v: ModelVersion) -> Iterator[str]:
    yield v.version
    yield ", ".join(v.aliases)
    for name, form in (("perplexity", ".3f"), ("latency_ms", ".3f"), ("device", ""), ("parameters", ",")):
        yield format(v.facts[name], form) if name in v.facts else "-"
    yield time.strftime("%Y-%m-%d %H:%M", time.localtime(v.created_ms / 1000))
    yield v.lineage.commit[:8] or "-"
    yield v.lineage.parent or v.lineage.source
    yield v.hook

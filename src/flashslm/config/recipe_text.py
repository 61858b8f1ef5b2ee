"""A recipe's text to plain values, each with its line; any bytes give values or one error that names a place.

PyYAML's parser gives the events; what they mean is decided here, because its constructors take keys of any type, build
dates, follow aliases without end and turn numbers of any length. Of YAML 1.1 a recipe may use mappings, lists, text,
numbers, booleans, null, comments, anchors, aliases and merge keys.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_BYTES = 4_000_000
MAX_CHARACTERS = 100_000  # of one value
MAX_DEPTH = 20
MAX_VALUES = 100_000  # scalars, lists and mappings, with what aliases repeat
_MAX_DIRECTIVES = 1  # of %YAML and %TAG: libyaml compares each with all before it
_TAG = "tag:yaml.org,2002:"
_KNOWN_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "seq", "map")}
_BOOLEANS = yaml.SafeLoader.bool_values
_INTEGER_BOUND = 2**63
_TEMPLATE = re.compile(r"\{\{|\{%|\$\{")
_PARSER: Any = yaml.CSafeLoader if yaml.__with_libyaml__ else yaml.SafeLoader
_RESOLVER = yaml.SafeLoader("")

Path = tuple[str | int, ...]


class UnreadableText(ValueError):
    """Text that is not a recipe; `line` counts from 1."""

    def __init__(self, problem: str, line: int):
        super().__init__(problem)
        self.problem, self.line = problem, line


@dataclass
class Values:
    """What the text holds, and the line of each value by its path of keys and positions."""

    root: Any
    lines: dict[Path, int] = field(default_factory=dict)


@dataclass
class _Node:
    """`content` is a scalar's value, a list of nodes, or pairs of two (key, value); `text` is as it is written."""

    kind: str
    content: Any
    line: int
    text: str = ""


def decode(raw: bytes) -> str:
    """UTF-8, with a byte-order mark or without. Raises UnreadableText."""
    if len(raw) > MAX_BYTES:
        raise UnreadableText(f"the file is larger than {MAX_BYTES:,} bytes: is it a recipe?", 1)
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UnreadableText("the file is UTF-16: save it as UTF-8", 1)
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw[: error.start].count(b"\n") + 1
        raise UnreadableText(f"byte 0x{raw[error.start]:02x} is not UTF-8: save the file as UTF-8", line) from None


def read_values(text: str) -> Values:
    """The values of one YAML document. Raises UnreadableText."""
    _refuse_characters(text)
    try:
        root = _Composer(text).document()
        return _Plain().values(root) if root else Values(None)
    except UnreadableText as error:
        raise UnreadableText(error.problem + _hint(text, error.line), error.line) from None


def _refuse_characters(text: str) -> None:
    if wrong := yaml.reader.Reader.NON_PRINTABLE.search(text):
        line = text.count("\n", 0, wrong.start()) + 1
        raise UnreadableText(f"character U+{ord(wrong.group()):04X} is not allowed: remove it", line)
    directives = [match.start() for match in re.finditer(r"^%", text, re.MULTILINE)]
    if len(directives) > _MAX_DIRECTIVES:
        line = text.count("\n", 0, directives[_MAX_DIRECTIVES]) + 1
        raise UnreadableText("a second line that begins with '%': a recipe needs no directives", line)


def _hint(text: str, line: int) -> str:
    """YAML's own words say little of a template that nothing filled in."""
    lines = text.splitlines()[max(0, line - 2) : line + 1]
    found = any(_TEMPLATE.search(part) for part in lines)
    return "; it looks like a template that was not rendered: replace {{ … }} by a value" if found else ""


class _Composer:
    """Nodes from the parser's events; an alias shares its anchor's node."""

    def __init__(self, text: str):
        self._events, self._line = yaml.parse(text, Loader=_PARSER), 1
        self._anchors: dict[str, _Node | None] = {}
        self._count = 0

    def document(self) -> _Node | None:
        root, documents = None, 0
        while not isinstance(event := self._next(), yaml.StreamEndEvent):
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise UnreadableText("a second document ('---'): a recipe is one", self._line)
            elif not isinstance(event, yaml.StreamStartEvent | yaml.DocumentEndEvent):
                root = self._node(event, 0)
        return root

    def _next(self) -> Any:
        try:
            event = next(self._events)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise UnreadableText(f"not valid YAML: {error.problem or error.context}", _line(mark, self._line)) from None
        except yaml.YAMLError as error:
            raise UnreadableText(f"not valid YAML: {error}", self._line) from None
        self._line = _line(event.start_mark, self._line)
        return event

    def _node(self, event: Any, depth: int) -> _Node:
        self._count += 1
        if self._count > MAX_VALUES:
            raise UnreadableText(f"more than {MAX_VALUES:,} values", self._line)
        if depth > MAX_DEPTH:
            raise UnreadableText(f"more than {MAX_DEPTH} levels of lists and mappings", self._line)
        if isinstance(event, yaml.AliasEvent):
            return self._aliased(event.anchor)
        if event.tag and event.tag not in (*_KNOWN_TAGS, "!"):
            raise UnreadableText(f"tag '{event.tag[:80]}' is not allowed: give plain values", self._line)
        if event.anchor:
            self._anchors[event.anchor] = None
        node = self._of_kind(event, depth)
        if event.anchor:
            self._anchors[event.anchor] = node
        return node

    def _aliased(self, anchor: str | None) -> _Node:
        if not anchor or anchor not in self._anchors:
            raise UnreadableText(f"alias '*{anchor}' has no anchor '&{anchor}' before it", self._line)
        node = self._anchors[anchor]
        if node is None:
            raise UnreadableText(f"alias '*{anchor}' is within the value that it stands for", self._line)
        return node

    def _of_kind(self, event: Any, depth: int) -> _Node:
        line = self._line
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event, line)
        if isinstance(event, yaml.SequenceStartEvent):
            return _Node("list", list(self._until(yaml.SequenceEndEvent, depth)), line)
        items = list(self._until(yaml.MappingEndEvent, depth))
        return _Node("mapping", list(zip(items[::2], items[1::2], strict=True)), line)

    def _until(self, end: type, depth: int) -> Iterator[_Node]:
        while not isinstance(event := self._next(), end):
            yield self._node(event, depth + 1)


def _line(mark: Any, otherwise: int) -> int:
    return mark.line + 1 if mark else otherwise


def _scalar(event: Any, line: int) -> _Node:
    """A value by YAML 1.1's rules; what they would make a date is text."""
    if len(event.value) > MAX_CHARACTERS:
        raise UnreadableText(f"a value of more than {MAX_CHARACTERS:,} characters", line)
    plain = event.tag is None and event.implicit[0]
    tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, (plain, True)) if plain else event.tag or _TAG + "str"
    if plain and tag == _TAG + "merge":
        return _Node("merge", event.value, line, event.value)
    try:
        return _Node("scalar", _VALUES.get(tag, str)(event.value), line, event.value)
    except (ValueError, KeyError, OverflowError) as error:
        shown = event.value if len(event.value) <= 40 else f"{event.value[:40]}…"
        reason = f" ({error})" if isinstance(error, OverflowError) else ""
        raise UnreadableText(f"'{shown}' is not a {tag.removeprefix(_TAG)} of a recipe{reason}", line) from None


def _integer(text: str) -> int:
    if len(text) > 80:
        raise OverflowError(f"it has {len(text):,} characters; numbers are at most 64-bit")
    number = int(_RESOLVER.construct_yaml_int(yaml.ScalarNode(_TAG + "int", text)))
    if not -_INTEGER_BOUND <= number < _INTEGER_BOUND:
        raise OverflowError("numbers are at most 64-bit")
    return number


def _float(text: str) -> float:
    if len(text) > 5_000:
        raise OverflowError(f"it has {len(text):,} characters")
    number = float(_RESOLVER.construct_yaml_float(yaml.ScalarNode(_TAG + "float", text)))
    if not math.isfinite(number):
        raise OverflowError("numbers are finite")
    return number


_VALUES: dict[str, Any] = {
    _TAG + "int": _integer,
    _TAG + "float": _float,
    _TAG + "bool": lambda text: _BOOLEANS[text.lower()],
    _TAG + "null": lambda _: None,
}


class _Plain:
    """Nodes to values of their own: what an alias repeats is a copy, so that a change of one changes no other."""

    def __init__(self) -> None:
        self._lines: dict[Path, int] = {}
        self._count = 0

    def values(self, root: _Node) -> Values:
        return Values(self._value(root, ()), self._lines)

    def _value(self, node: _Node, path: Path) -> Any:
        self._count += 1
        if self._count > MAX_VALUES:
            raise UnreadableText(f"aliases make more than {MAX_VALUES:,} values of this", node.line)
        if len(path) > MAX_DEPTH:
            raise UnreadableText(f"aliases make more than {MAX_DEPTH} levels of this", node.line)
        self._lines[path] = node.line
        if node.kind == "list":
            return [self._value(item, (*path, index)) for index, item in enumerate(node.content)]
        if node.kind == "mapping":
            return self._mapping(node, path)
        return node.content

    def _mapping(self, node: _Node, path: Path) -> dict[str, Any]:
        """Its own keys over those it merges, of which the first named win."""
        own = [(key, value) for key, value in node.content if key.kind != "merge"]
        _refuse_twice([_key(key) for key, _ in own], own)
        merged = [source for key, value in node.content if key.kind == "merge" for source in _merged(value)]
        values: dict[str, Any] = {}
        for source in reversed(merged):
            values |= self._value(source, path)
        self._lines[path] = node.line
        return values | {_key(key): self._value(value, (*path, _key(key))) for key, value in own}


def _refuse_twice(names: list[str], pairs: list[tuple[_Node, _Node]]) -> None:
    seen: set[str] = set()
    for name, (key, _) in zip(names, pairs, strict=True):
        if name in seen:
            raise UnreadableText(f"key '{name[:80]}' is there twice", key.line)
        seen.add(name)


def _merged(node: _Node) -> list[_Node]:
    sources = node.content if node.kind == "list" else [node]
    if any(source.kind != "mapping" for source in sources):
        raise UnreadableText("'<<' takes a mapping or a list of mappings", node.line)
    return list(sources)


def _key(node: _Node) -> str:
    """Keys are names: a number, a date or a null there is the text that it is written as."""
    if node.kind in ("list", "mapping"):
        raise UnreadableText(f"a {node.kind} stands where a key is expected: keys are names", node.line)
    return node.text

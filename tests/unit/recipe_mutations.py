"""Reads mutated recipes in one process, under limits of CPU time and memory, and reports what went wrong as JSON.

Run as `python recipe_mutations.py SEED COUNT RECIPE...`.
"""

import json
import random
import re
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from flashslm.config.file import ConfigError, load
from flashslm.steps.recipe_checks import problems

MAX_S = 2.0
MAX_BYTES = 500_000_000
PLACE = re.compile(r"^(  \d+\. )?([^\n]*recipe\.yaml:\d+|override [\w.'{-])")

WORDS = """~ null yes no on off y .inf -.inf .nan 1e400 -1e400 1e12 1000000000000 -1 0 0.0 1:30:00 0x1F 0b11 0o7 017
1_000 2020-01-01 2020-13-45 2001-12-14t21:59:43.10-05:00 = << !!binary !!python/object:os.system !local {} [] {{}}
{{name}} ${NAME} {%if%} &a *a *b &a[*a] '' | > ? - : % @ ` # é ﷽ 💥 inf nan Infinity s3://x (DFMF)x9999999999
((((DF)x99)x99)x99)x99 hf_abcdefghijklmnopqrstuvwxyz012345"""
SCALARS = [
    *WORDS.split(),
    *('"\\u0000"', '"\\uD800"', "'{{ name }}'", "a: b: c", "[" * 3000, "[" * 10 + "]" * 10),
    *("9" * 5000, "1." + "0" * 5000, "1" + ":59" * 2000, "x" * 20_000),
]

FRAGMENTS = [
    *("? {a: b}\n: 1\n", "null: 1\n", "~: {a: ~}\n", "2020-01-01: 1\n", "1.5: 2\n", "? [1, 2]\n: x\n"),
    *("<<: *a\n", "<<: 1\n", "<<: [1]\n", "---\n", "...\n", "%YAML 1.1\n", "%TAG ! x\n" * 20, "\t- x\n", "- x\n"),
    *("training:\n", "training: &t {steps: 3}\n", "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\n"),
    *("{% if x %}\n", "name: {{ name }}\n", "seed: !!int '7'\n", "&x x: &y y\n*x : *y\n"),
    *("search: &s {<<: *s}\n", "training: {<<: {steps: 3}, seeds: [0, 0]}\n"),
]


def _levels(first: str, level: str) -> str:
    """Eleven levels that each name the one before nine times."""
    return first + "".join(f"a{i}: &a{i} " + level % ", ".join([f"*a{i - 1}"] * 9) + "\n" for i in range(1, 12))


BOMBS = (
    _levels("a0: &a0 [x, x, x]\n", "[%s]"),
    _levels("a0: &a0 {x: 1}\n", "{<<: [%s]}"),
    "name: " + "[" * 200_000,
    "name: x\nsearch: {widths: [" + "1, " * 90_000 + "1]}\n",
    "name: x\ndata: {source: files, paths: [" + ", ".join(f"/data/{i}.jsonl" for i in range(20_000)) + "]}\n",
    "name: x\n" + "".join(f"key{i}: 1\n" for i in range(50_000)),
    "%TAG !a! b\n" * 50_000 + "--- {}\n",
    "name: x\n" + "? " * 100_000,
    "name: '" + "x" * 3_900_000 + "'\n",
    "name: x" + "x" * 3_900_000 + "\n",
    "name: x\ndata: {dataset: " + ":/@" * 30_000 + "}\n",
    "#" * 9_000_000,
    "name: x\nscaling: {block: " + "(" * 4000 + "DF" + ")x9" * 4000 + "}\n",
)


def mutate(text: str, rng: random.Random) -> bytes:
    """One to three mutations of a recipe's lines or bytes."""
    lines = text.splitlines(keepends=True)
    for _ in range(rng.randint(1, 3)):
        at = rng.randrange(len(lines)) if lines else 0
        rng.choice(LINE_MUTATIONS)(lines, at, rng)
    raw = "".join(lines).encode("utf-8", "surrogatepass")
    return rng.choice(BYTE_MUTATIONS)(raw, rng) if rng.random() < 0.25 else raw


def _set_value(lines: list[str], at: int, rng: random.Random) -> None:
    if ":" in lines[at]:
        lines[at] = f"{lines[at].split(':', 1)[0]}: {rng.choice(SCALARS)}\n"


def _set_item(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = re.sub(r"\d+", lambda _: rng.choice(SCALARS), lines[at], count=1)


def _set_key(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = re.sub(r"\w+:", lambda _: f"{rng.choice(SCALARS)}:", lines[at], count=1)


def _insert(lines: list[str], at: int, rng: random.Random) -> None:
    lines.insert(at, "  " * rng.randint(0, 2) + rng.choice(FRAGMENTS))


def _anchor(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = lines[at].replace(": ", ": &a ", 1)
    other = rng.randrange(len(lines))
    lines[other] = re.sub(r": .*", ": *a", lines[other])


def _indent(lines: list[str], at: int, rng: random.Random) -> None:
    lines[at] = " " * rng.randint(0, 4) + lines[at].lstrip()


def _move(lines: list[str], at: int, rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines) + 1), lines[at] if rng.random() < 0.5 else lines.pop(at))


LINE_MUTATIONS: tuple[Callable[[list[str], int, random.Random], None], ...] = (
    _set_value, _set_value, _set_item, _set_key, _insert, _anchor, _indent, _move,
)  # fmt: skip
BYTE_MUTATIONS: tuple[Callable[[bytes, random.Random], bytes], ...] = (
    lambda raw, rng: raw[: rng.randrange(len(raw) + 1)],
    lambda raw, rng: _replaced(raw, rng, bytes([rng.randrange(256)])),
    lambda raw, rng: _replaced(raw, rng, rng.randbytes(4)),
    lambda raw, rng: _replaced(raw, rng, b"\x00"),
    lambda raw, rng: b"\xef\xbb\xbf" + raw,
    lambda raw, rng: raw.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-16-le", "utf-32", "utf-8"])),
    lambda raw, rng: raw.replace(b"\n", rng.choice([b"\r\n", b"\r", b"\t\n", b"\x85"])),
)


def _replaced(raw: bytes, rng: random.Random, part: bytes) -> bytes:
    at = rng.randrange(len(raw) + 1)
    return raw[:at] + part + raw[at + 1 :]


class TooSlow(BaseException):
    """No handler of the reader may take it for an error of its own."""


def outcome(path: Path, overrides: list[str]) -> str:
    """What was wrong with the reader's answer; empty for a recipe or for messages that each have a place."""
    try:
        signal.setitimer(signal.ITIMER_PROF, MAX_S)
        load(path, overrides, checks=problems)
    except ConfigError as error:
        lines = str(error).splitlines()
        listed = lines[1:] if lines[0].startswith("recipe ") else lines
        homeless = [line for line in listed if not PLACE.match(line) and not line.startswith("  … and")]
        return f"no place: {homeless[:1] or error}"[:300] if homeless or not listed else ""
    except TooSlow:
        return "hang: " + "".join(traceback.format_exc(limit=-4))
    except BaseException:
        return "traceback: " + traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return ""


def _stop(_number: int, _frame: FrameType | None) -> None:
    raise TooSlow


def main() -> None:
    seed, count, recipes = int(sys.argv[1]), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    rng = random.Random(seed)
    signal.signal(signal.SIGPROF, _stop)
    texts = [recipe.read_text(encoding="utf-8") for recipe in recipes]
    failures = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "recipe.yaml"
        inputs = [(text.encode(), []) for text in BOMBS]
        while len(inputs) < count:
            chosen = rng.choice(texts)
            overrides = [f"training.steps={rng.choice(SCALARS)}"] if rng.random() < 0.05 else []
            inputs.append((mutate(chosen, rng), overrides))
        base = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for raw, overrides in inputs:
            path.write_bytes(raw)
            if wrong := outcome(path, overrides):
                failures.append({"input": repr(raw[:2000]), "overrides": overrides, "wrong": wrong})
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) * 1024
    print(json.dumps({"inputs": len(inputs), "peak_bytes": peak, "failures": failures}))


if __name__ == "__main__":
    main()

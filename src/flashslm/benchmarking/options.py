"""Options of the scripts in benchmarks/: what a script cannot use is refused before its work begins, with exit code 2.

A script makes its parser by `make_parser()`, whose options have the types below, and reads its other inputs inside
`before_work`. `tests/unit/benchmarking/test_scripts.py` goes over all scripts by their parsers.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashslm.infra.state_files import require_writable, require_writable_directory
from flashslm.models.architecture import parse_operators
from flashslm.ops.kernels import read_setting


def script_parser(text: str | None) -> argparse.ArgumentParser:
    """A parser without options; `text` is the script's docstring."""
    return argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)


@contextmanager
def before_work(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End as for a wrong option, with exit code 2, where an input cannot be used or a package is missing."""
    try:
        yield
    except (ValueError, OSError, ImportError) as error:
        parser.error(str(error))


@dataclass(frozen=True)
class OptionType:
    """A `type` of argparse that says what is allowed: `read` raises ValueError with that message."""

    read: Callable[[str], Any]

    def __call__(self, text: str) -> Any:
        try:
            return self.read(text)
        except (ValueError, OSError) as error:
            raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True)
class NumberType:
    """A `type` of argparse for numbers of at least `least`, or `above` it; infinity only where `unlimited`."""

    least: float
    whole: bool = True
    above: bool = False
    unlimited: bool = False

    def __call__(self, text: str) -> int | float:
        try:
            value = int(text) if self.whole else float(text)
        except ValueError:
            value = math.nan
        is_low = value <= self.least if self.above else value < self.least
        if math.isnan(value) or is_low or (math.isinf(value) and not self.unlimited):
            raise argparse.ArgumentTypeError(f"'{text}' is not {self.allowed}")
        return value

    @property
    def allowed(self) -> str:
        bound = f"{'above' if self.above else 'of at least'} {self.least:g}"
        return f"a {'whole number' if self.whole else 'number'} {bound}"


COUNT = NumberType(1)  # repeats, steps, tokens, sizes
COUNT_OR_NONE = NumberType(0)
POSITIVE = NumberType(0, whole=False, above=True)
NOT_NEGATIVE = NumberType(0, whole=False)
MINUTES = NumberType(0, whole=False, unlimited=True)


def _file(text: str) -> Path:
    if not Path(text).is_file():
        raise ValueError(f"'{text}' is not a file: give the path of one that is there")
    return Path(text)


def _directory(text: str) -> Path:
    if not Path(text).is_dir():
        raise ValueError(f"'{text}' is not a directory: give the path of one that is there")
    return Path(text)


def _text(text: str) -> str:
    if not text.strip():
        raise ValueError("it is empty: give a name")
    return text


def _operators(text: str) -> str:
    parse_operators(text)
    return text


def _override(text: str) -> str:
    key, separator, _ = text.partition("=")
    if not separator or not key.strip():
        raise ValueError(f"'{text}' is not an override: give section.key=value, such as training.steps=50")
    return text


def _kernel(text: str) -> str:
    read_setting([text])
    return text


OUTPUT = OptionType(lambda text: require_writable(Path(text)))  # a file that the script writes
INPUT, DIRECTORY = OptionType(_file), OptionType(_directory)  # that it reads
NEW_DIRECTORY = OptionType(lambda text: require_writable_directory(Path(text)))  # that it makes, or continues
TEXT = OptionType(_text)  # what `before_work` reads further
OPERATORS, OVERRIDE, KERNEL = OptionType(_operators), OptionType(_override), OptionType(_kernel)


def require_gpu() -> None:
    """ValueError where a script that measures a GPU has none."""
    import torch

    if not torch.cuda.is_available():
        raise ValueError("this measures a GPU, and this machine has no usable one: `nvidia-smi` says what there is")

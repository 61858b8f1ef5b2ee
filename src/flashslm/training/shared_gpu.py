"""A GPU that several processes train on at once: one that runs out of memory has it alone for a second try.

Lack of memory beside others says nothing of the model. Two lock files on this machine order the processes: `use` is
held shared by those that train side by side, and exclusively by one that trains alone; who wants either passes `gate`
first, so that one that waits to be alone is not overtaken for ever.
"""

import fcntl
import gc
import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import torch

from flashslm.hardware import is_lack_of_memory
from flashslm.infra.process.collection import keep_what_is_there
from flashslm.infra.state_files import locked_file

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class OutOfMemory(RuntimeError):
    """A training that does not fit on the GPU even without neighbours."""


class SharedGpu:
    """One device of this machine, as the processes that name the same lock directory share it."""

    def __init__(self, locks: Path) -> None:
        self._gate, self._use = locks / "gate.lock", locks / "use.lock"

    @classmethod
    def of(cls, device: str) -> "SharedGpu":
        """That of a device; a CPU has locks too, although only this project's processes heed them."""
        name = str(torch.cuda.get_device_properties(device).uuid) if device.startswith("cuda") else device
        return cls(Path(tempfile.gettempdir()) / f"flashslm-{os.getuid()}" / name)

    def run(self, work: Callable[[], Result]) -> Result:
        """What `work` returns, run beside others and, if memory ran out there, once more alone.

        Raises OutOfMemory where it runs out alone too.
        """
        keep_what_is_there()
        with self.beside_others():
            made, lacked = _unless_memory_ends(work)
        if not lacked:
            return made[0]
        _log.warning("memory ran out beside other processes of this GPU (%s): tried again alone", lacked)
        with self.alone():
            made, lacked = _unless_memory_ends(work)
        if lacked:
            raise OutOfMemory(f"the GPU has too little memory for it, without neighbours too: {lacked}")
        return made[0]

    @contextmanager
    def beside_others(self) -> Iterator[None]:
        """Side by side with any number of processes, and with none that is `alone`."""
        with ExitStack() as held:
            with locked_file(self._gate):
                held.enter_context(locked_file(self._use, fcntl.LOCK_SH))
            yield

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Once all others have finished what they are at; they wait until the end of the block."""
        with locked_file(self._gate), locked_file(self._use):
            yield


def _unless_memory_ends(work: Callable[[], Result]) -> tuple[list[Result], str]:
    """The result in a list, or an empty one with the error's text; memory goes back to the GPU in both cases."""
    made, lacked = [], ""
    try:
        made = [work()]
    except (RuntimeError, MemoryError) as error:  # torch.OutOfMemoryError is a RuntimeError
        if not is_lack_of_memory(error):
            raise
        lacked = str(error).splitlines()[0] if str(error) else type(error).__name__
    if lacked:
        gc.collect()  # the error's frames held the model
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return made, lacked

"""Garbage collection of a step's process, watched in processes that end."""

import subprocess
import sys
from pathlib import Path

CYCLE = """
import gc
from flashslm.infra.process.collection import (
    collection_held, end_without_collection, keep_what_is_there, resume_collection
)

class Cycle:
    def __init__(self, name):
        self.name, self.itself = name, self

    def __del__(self):
        print(self.name, "is collected")
"""


def printed(script: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CYCLE + script], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def test_what_is_made_while_it_is_held_stays_and_what_is_made_later_is_collected() -> None:
    script = """
with collection_held():
    print(gc.isenabled())
    Cycle("an import")
    resume_collection()
    print(gc.isenabled())
    Cycle("a batch")
    gc.collect()
"""
    assert printed(script) == ["False", "True", "a batch is collected"]


def test_the_end_of_the_block_resumes_as_well() -> None:
    script = """
try:
    with collection_held():
        raise ValueError
except ValueError:
    print(gc.isenabled())
"""
    assert printed(script) == ["True"]


def test_without_holding_nothing_is_resumed_or_kept() -> None:
    assert printed("resume_collection(); Cycle('a batch'); gc.collect()") == ["a batch is collected"]


def test_what_is_kept_is_collected_once_and_never_looked_at_again() -> None:
    script = """
kept = Cycle("an import")
Cycle("the training before")
keep_what_is_there()
del kept
Cycle("a batch")
gc.collect()
"""
    assert printed(script) == ["the training before is collected", "a batch is collected"]


def test_the_end_of_a_process_collects_nothing_but_what_asked_for_an_end_gets_it() -> None:
    script = """
import atexit, tempfile
end_without_collection()
kept = Cycle("the end")
directory = tempfile.TemporaryDirectory()
atexit.register(lambda: print("the handler runs"))
atexit.register(print, directory.name)
"""
    name, handled = printed(script)
    assert handled == "the handler runs"
    assert not Path(name).exists()
    assert printed("kept = Cycle('the end')") == ["the end is collected"], "without it"

"""What lm-evaluation-harness does on the host beside the model: repeated work done once, lines in place of bars.

It compiles a task's templates again for every item, which took more than half of an evaluation's host time; here each
is compiled once. Nothing that it returns changes.
"""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from functools import lru_cache, partialmethod, wraps
from typing import Any

from flashslm.hardware import changed_environment

_log = logging.getLogger(__name__)

TEMPLATES = 4096  # kept compiled; a task has a handful


@contextmanager
def lean_harness() -> Iterator[None]:
    """Tasks that are run meanwhile are prepared with less work, and say what was prepared in lines of the log.

    What the harness prints goes to stderr. Its bars and those of `datasets` are drawn on a terminal only.
    """
    with ExitStack() as stack:
        stack.enter_context(compiled_once())
        stack.enter_context(_bootstrap_in_process())
        stack.enter_context(_timed_requests())
        stack.enter_context(redirect_stdout(sys.stderr))
        stack.enter_context(bars_on_a_terminal())
        stack.enter_context(_without_environment())
        yield


@contextmanager
def compiled_once() -> Iterator[None]:
    """Each of the harness's templates is compiled when it is first rendered, not for every item."""
    from lm_eval.utils import env

    with _replaced(env, "from_string", lru_cache(TEMPLATES)(env.from_string)):
        yield


@contextmanager
def bars_on_a_terminal() -> Iterator[None]:
    """Progress bars of the harness and of `datasets` are drawn where a person watches, and not in a log."""
    with nullcontext() if sys.stderr.isatty() else without_bars():
        yield


@contextmanager
def without_bars() -> Iterator[None]:
    """No progress bars of the harness, nor of `datasets`."""
    import datasets
    from lm_eval.api.task import tqdm

    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with _replaced(tqdm, "__init__", partialmethod(tqdm.__init__, disable=True)):
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()


def processed_once(process: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A task's `process_docs`, run once per data set where it makes another `datasets.Dataset`, which no one changes.

    The harness runs it whenever it asks for a task's documents.
    """
    from datasets import Dataset

    made: dict[int, tuple[Any, Any]] = {}  # the data set is kept too, so that its id stays its own

    @wraps(process)
    def documents(dataset: Any) -> Any:
        if id(dataset) in made:
            return made[id(dataset)][1]
        found = process(dataset)
        if isinstance(found, Dataset):
            made[id(dataset)] = dataset, found
        return found

    return documents


@contextmanager
def _bootstrap_in_process() -> Iterator[None]:
    """With the same draws. All resamples are one chunk, so of a pool's processes only one would work."""
    with changed_environment({"DISABLE_MULTIPROC": "1"}):
        yield


@contextmanager
def _timed_requests() -> Iterator[None]:
    """Log how long each task's prompts took."""
    from lm_eval.api.task import Task

    build = Task.build_all_requests

    def timed(task: Any, **options: Any) -> None:
        started = time.perf_counter()
        build(task, **options)
        items, seconds = len({request.doc_id for request in task.instances}), time.perf_counter() - started
        _log.info(f"{task.task_name}: {items:,} items, {len(task.instances):,} requests made in {seconds:.1f} s")

    with _replaced(Task, "build_all_requests", timed):
        yield


@contextmanager
def _without_environment() -> Iterator[None]:
    """The harness runs pip, nvidia-smi and compilers to describe the machine, which takes seconds, and git for the
    commit of the working directory, which outside of a checkout prints an error. Runs record both themselves.
    """
    from lm_eval import evaluator

    with (
        _replaced(evaluator, "get_git_commit_hash", lambda: None),
        _replaced(evaluator, "add_env_info", lambda outcome: None),
    ):
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute for a while."""
    is_own, before = name in vars(owner), getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)

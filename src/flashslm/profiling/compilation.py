"""Fill Triton's cache on disk by several processes: a lone one would compile a table's kernels one after the other.

The kernels of a table travel with the others, and so does a marker that they are complete: starting processes only to
find them takes seconds.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from flashslm.config import digest
from flashslm.hardware import pick_dtype, threads_shared_by
from flashslm.models.operator_spec import EXPORTABLE_OPERATORS
from flashslm.ops.kernel_cache import cache_directory
from flashslm.ops.kernels import chosen
from flashslm.profiling.measure import available_bytes, build_table_steps
from flashslm.profiling.plan import ProfilingPlan

DECIDE_KERNELS = {"dtype", "weights", "operators", "widths", "contexts", "batches", "sizes"}  # of a profiling section
TABLES = "tables"  # in the kernel cache: an empty file for each table whose kernels are there


def compile_ahead(plan: ProfilingPlan, code_digest: str = "") -> None:
    """Compile what the plan's table will run, one process per width; nothing where no kernel is ours to compile, or
    where that was done before by the code of this digest.

    A table of nine widths and five batches has more than two hundred kernels of about two seconds each.
    """
    config, device = plan.profiling, plan.device
    processes = min(config.compile_processes, len(config.widths))
    if device == "cpu" or not processes or chosen("decode", device, pick_dtype(config.dtype, device)) != "fused":
        return
    facts = [config.model_dump(mode="json", include=DECIDE_KERNELS), plan.vocab_size, code_digest]
    facts.append(plan.sizes.model_dump(mode="json", exclude={"output_init"}))
    done = cache_directory() / TABLES / digest(facts)
    if code_digest and done.exists():
        return
    memory_bytes = available_bytes(device) / processes
    parts = [plan.changed(operators=EXPORTABLE_OPERATORS, widths=(width,)) for width in config.widths]
    spawn = multiprocessing.get_context("spawn")
    with threads_shared_by(processes), ProcessPoolExecutor(processes, spawn) as pool:
        for job in [pool.submit(build_table_steps, part, memory_bytes) for part in parts]:
            job.result()
    done.parent.mkdir(parents=True, exist_ok=True)
    done.touch()

"""Fill Triton's cache on disk by several processes: a lone one would compile a table's kernels one after the other.

The projections in CUDA C++ compile in a fraction of a second each, in every process that uses them.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from flashslm.config import ModelConfig, ProfilingConfig
from flashslm.hardware import pick_device, pick_dtype
from flashslm.models.architecture import EXPORTABLE_OPERATORS
from flashslm.ops.kernels import chosen


def compile_ahead(config: ProfilingConfig, sizes: ModelConfig, vocab_size: int) -> None:
    """Compile what the table of this section will run, a process a width; nothing where no kernel is ours to compile.

    A table of nine widths and five batches has more than two hundred kernels of about two seconds each.
    """
    from flashslm.profiling.measure import available_bytes, compile_kernels

    device = pick_device(config.device)
    processes = min(config.compile_processes, len(config.widths))
    if device == "cpu" or not processes or chosen("decode", device, pick_dtype(config.dtype, device)) != "fused":
        return
    memory_bytes = available_bytes(device) / processes
    fused = config.model_copy(update={"operators": EXPORTABLE_OPERATORS})
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        parts = [fused.model_copy(update={"widths": (width,)}) for width in config.widths]
        jobs = [pool.submit(compile_kernels, part, sizes, vocab_size, memory_bytes) for part in parts]
        for job in jobs:
            job.result()

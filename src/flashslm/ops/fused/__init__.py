"""Forms of the operations that run on CUDA only, by libraries and by Triton kernels of our own; see `ops.dispatch`."""

import importlib.util

from flashslm.ops.fused.tuning import install

if importlib.util.find_spec("triton"):
    install()

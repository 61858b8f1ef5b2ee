"""Forms of the operations that run on CUDA only, by libraries and by Triton kernels of our own; see `ops.dispatch`."""

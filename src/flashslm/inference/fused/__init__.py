"""Decode steps by fused kernels in Triton and CUDA C++: every kernel begins on its weights and states while the one before it ends."""

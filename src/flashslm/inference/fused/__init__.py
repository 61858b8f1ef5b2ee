"""Decode steps by fused kernels, in Triton and CUDA C++: each begins on its weights and states while another ends."""

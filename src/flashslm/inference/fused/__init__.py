"""Decode steps by fused Triton kernels: every kernel begins on its weights and states while the one before it ends."""

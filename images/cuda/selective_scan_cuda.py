"""In place of mamba-ssm's CUDA extension, which its package imports: Mamba-1's scan, used by no operator here."""

from typing import Never


def fwd(*_: object) -> Never:
    raise NotImplementedError("this image has mamba-ssm without Mamba-1's selective scan; Mamba-2 uses Triton kernels")


bwd = fwd

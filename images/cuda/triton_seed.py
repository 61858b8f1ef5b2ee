"""Triton's cache with a read-only part that the image brings: the driver's helper, which otherwise needs a C compiler.

Run as a program where there is one, it compiles the helper into $TRITON_CACHE_DIR. Needs no GPU, but a library of the
driver's name.
"""

import os
import sys
from pathlib import Path

from triton.runtime.cache import FileCacheManager


class SeededCache(FileCacheManager):
    """Look below $TRITON_CACHE_DIR, then below $TRITON_SEED_DIR."""

    def get_file(self, filename: str) -> str | None:
        if found := super().get_file(filename):
            return found
        seed = Path(os.environ["TRITON_SEED_DIR"]) / Path(self.cache_dir).name / filename
        return str(seed) if seed.is_file() else None


if __name__ == "__main__":
    from triton.backends.nvidia.driver import CudaUtils

    sys.setdlopenflags(os.RTLD_LAZY)  # the stand-in for the driver has no functions
    CudaUtils()

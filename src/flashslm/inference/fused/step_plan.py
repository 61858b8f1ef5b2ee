"""How a fused step of some sequences is computed: the form of its products, and how attention's keys are shared.

No torch here. `usual_plan` is what a step takes; every other plan can be given to `FusedDecoder`, and
`benchmarks/step_plans.py` times them beside each other.
"""

from math import ceil
from typing import Literal, NamedTuple

from flashslm.inference.fused.tilings import MAX_BATCH

ProductForm = Literal["vector", "tiled", "matrix"]
MOST_VECTORS = 8  # sequences whose inputs a vector product holds in registers

# An H200's, fitted to Qwen3-0.6B's layers at 8k and batches of 1 to 64, where an SM runs three programs at a time. For
# Nemotron-Flash-1B, which the fit did not use, the model is within 2 % of the times at batches of 16 to 64.
STREAM_BYTES_PER_US = 4.4e6  # of all programs together
ALONE_BYTES_PER_US = 28e3  # of one program, which computes between its loads
START_US, COMBINE_US = 3.0, 2.0  # a kernel's beginning and end; the second kernel of a split attention


class ProductTile(NamedTuple):
    """What a program of the tiled product takes: `rows` of weights, and `columns` of them at a time."""

    rows: int
    columns: int
    stages: int = 4
    warps: int = 4


class AttentionPlan(NamedTuple):
    """The programs of attention: at least `programs`, or with `whole_waves` as many as fill waves of `programs` best.

    An SM of an H100 or H200 holds three programs of the usual sizes (128 registers, 68 KiB), so that a wave is 396.
    """

    keys: int = 64  # of a block
    stages: int = 3  # blocks: one in use, the others under way
    warps: int = 4
    programs: int = 264
    whole_waves: bool = False

    def splits(self, pairs: int, slots: int, key_bytes: int = 512) -> int:
        """Into how many parts the keys of each pair of a sequence and a key head are split."""
        most = max(1, slots // self.keys)
        if not self.whole_waves:
            return min(ceil(self.programs / pairs), most)
        tried = range(1, min(most, max(1, ceil(8 * self.programs / pairs))) + 1)
        return min(tried, key=lambda splits: (self.modelled_us(pairs, slots, splits, key_bytes), splits))

    def modelled_us(self, pairs: int, keys: int, splits: int, key_bytes: int = 512) -> float:
        """Modelled time, where `programs` run at a time: the last wave reads slowly if few programs are left for it.

        `key_bytes` are those of a key and its value.
        """
        each = ceil(ceil(keys / splits) / self.keys) * self.keys
        used = ceil(keys / each)
        waves, left = divmod(pairs * used, self.programs)
        program_bytes = each * key_bytes
        sizes = [self.programs] * waves + [left] * (left > 0)
        reading = sum(max(n * program_bytes / STREAM_BYTES_PER_US, program_bytes / ALONE_BYTES_PER_US) for n in sizes)
        return START_US + reading + (COMBINE_US if used > 1 else 0.0)


class StepPlan(NamedTuple):
    """`product`: vector products (projection.cu), tiled ones (tiled.py), or torch's with kernels around them.

    `tile` replaces the usual tile of a tiled product.
    """

    product: ProductForm
    attention: AttentionPlan = AttentionPlan()
    tile: ProductTile | None = None

    def check(self, batch: int) -> None:
        """Raise ValueError if a step of `batch` sequences cannot have this plan."""
        if self.product == "vector" and batch > MOST_VECTORS:
            raise ValueError(
                f"product 'vector' for {batch} sequences: it takes up to {MOST_VECTORS}; choose 'tiled' or 'matrix'"
            )


# Up to how many sequences, and the plan that was measured to be the fastest for them; the last one for more.
USUAL_PLANS = ((MAX_BATCH, StepPlan("vector")), (None, StepPlan("matrix")))


def usual_plan(batch: int) -> StepPlan:
    """The plan of a step of `batch` sequences."""
    return next(plan for most, plan in USUAL_PLANS if most is None or batch <= most)


def usual_tile(rows: int, size: int, batch: int) -> ProductTile:
    """A tile for a weight [rows, size]: many programs where there are few rows, little input per program otherwise."""
    per_program = 16 if rows <= 4096 else 32 if rows <= 16_384 else 64
    if batch > 16:
        return ProductTile(max(32, per_program), 64 if batch > 32 else 128)
    return ProductTile(per_program, 256 if per_program == 16 and size >= 1024 else 128)

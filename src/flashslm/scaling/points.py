"""How many points a family gives and a law needs: known from a recipe alone. No numpy and no torch here."""


def evaluation_steps(steps: int, checkpoints: int) -> tuple[int, ...]:
    """`checkpoints` step counts from a quarter of the run to its end, evenly spaced in log N.

    The first quarter holds the warm-up and the descent to the unigram loss, which no power law in N describes: on a
    family of small models, points from an eighth on doubled the fit's residuals and tripled the held-out error.
    """
    return tuple(sorted({max(1, round(steps * 4 ** (i / (checkpoints - 1) - 1))) for i in range(checkpoints)}))


def num_constants(*distinct: int) -> int:
    """Constants of the law for so many distinct depths, widths and token counts: L0, and two per axis that varies."""
    return 1 + 2 * sum(count > 1 for count in distinct)

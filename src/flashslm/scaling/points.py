"""How many points a family gives and a law needs: known from a recipe alone. No numpy and no torch here."""


def evaluation_steps(steps: int, checkpoints: int) -> tuple[int, ...]:
    """`checkpoints` step counts from a quarter of the run to its end, evenly spaced in log N.

    The first quarter holds the warm-up and the descent to the unigram loss, which no power law in N describes: on a
    family of small models, points from an eighth on doubled the fit's residuals and tripled the held-out error.
    """
    return tuple(sorted({max(1, round(steps * 4 ** (i / (checkpoints - 1) - 1))) for i in range(checkpoints)}))


def num_constants(depths: int, widths: int, tokens: int) -> int:
    """Constants of the law for so many distinct values: L0, two per axis that varies, and kappa where it is fitted."""
    return 1 + 2 * sum(count > 1 for count in (depths, widths, tokens)) + has_kappa(depths, widths, tokens)


def has_kappa(depths: int, widths: int, tokens: int) -> bool:
    """Whether so many distinct values show how the tokens' exponent depends on the model's size.

    Fewer than three token counts do not determine an exponent, and models of one depth or one width say little of size.
    """
    return depths > 1 and widths > 1 and tokens > 2

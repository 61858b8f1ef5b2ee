"""Two synthetic tasks of MAD (Poli et al. 2024, arXiv 2403.17844, section 3.1): what a design must be able to do.

- noisy in-context recall: pairs of a key and a value, whose assignment is new in every row, and noise between them; at
  a key that came before, its value is asked for.
- selective copying: tokens at random places among blanks; they are asked for at the end, in their order.

Rows of both have the same tokens, so that one small model learns both at once. Memorisation and compression are left
out: the first is what the proxy loss measures anyway, the second needs a decoder of its own.
"""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

KEYS, VALUES, NOISE = 8, 8, 8  # how many different tokens there are of each
FIRST_VALUE, FIRST_NOISE = KEYS, KEYS + VALUES
BLANK, COPY = FIRST_NOISE + NOISE, FIRST_NOISE + NOISE + 1
VOCAB_SIZE = 32
NOISE_SHARE = 0.2  # of the places of pairs
COPIED = 8  # tokens to copy
MIN_LENGTH = 2 * COPIED
NO_TARGET = -100

SyntheticTask = Callable[[int, int, Generator], tuple[Tensor, Tensor]]


def noisy_recall(rows: int, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Tokens and targets [rows, length] of an even length; the target at a key is its value if the key came before."""
    pairs = length // 2
    keys_BP = torch.randint(KEYS, (rows, pairs), generator=generator)
    value_of_BK = torch.randint(VALUES, (rows, KEYS), generator=generator) + FIRST_VALUE
    noise_BP2 = torch.randint(NOISE, (rows, pairs, 2), generator=generator) + FIRST_NOISE
    is_noise_BP = torch.rand(rows, pairs, generator=generator) < NOISE_SHARE
    values_BP = value_of_BK.gather(1, keys_BP)
    tokens_BP2 = torch.where(is_noise_BP[..., None], noise_BP2, torch.stack([keys_BP, values_BP], dim=-1))
    same_BPP = (keys_BP[:, :, None] == keys_BP[:, None, :]) & ~is_noise_BP[:, None, :]
    came_before_BP = same_BPP.tril(diagonal=-1).any(dim=-1)
    asked_BP = torch.where(came_before_BP & ~is_noise_BP, values_BP, NO_TARGET)
    targets_BP2 = torch.stack([asked_BP, torch.full_like(asked_BP, NO_TARGET)], dim=-1)
    return tokens_BP2.flatten(1), targets_BP2.flatten(1)


def selective_copying(rows: int, length: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Tokens and targets [rows, length]; the last COPIED places ask for the tokens before them that are not blank."""
    before = length - COPIED
    places_BC = torch.rand(rows, before, generator=generator).argsort(dim=1)[:, :COPIED].sort(dim=1).values
    values_BC = torch.randint(VALUES, (rows, COPIED), generator=generator) + FIRST_VALUE
    tokens_BT = torch.full((rows, length), BLANK).scatter_(1, places_BC, values_BC)
    tokens_BT[:, before:] = COPY
    targets_BT = torch.full((rows, length), NO_TARGET)
    targets_BT[:, before:] = values_BC
    return tokens_BT, targets_BT


TASKS: dict[str, SyntheticTask] = {"noisy_recall": noisy_recall, "selective_copying": selective_copying}

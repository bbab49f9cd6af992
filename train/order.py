"""Which group of rows is seen when: a pure function of (seed, epoch, step, world size), with nothing to replay."""

from functools import lru_cache
from typing import Any

import numpy as np


class SampleOrder:
    """The order of the groups of one or several sources.

    Slot `i` of an epoch is filled by the source that a shuffle with fixed shares gives it; every source walks through
    permutations of its own groups, one after the other across epochs, so that each of its groups comes up once before
    any comes up again. Step `s` takes the slots from `s * groups_per_step` on and rank `r` of `w` every `w`-th of
    them: what the step holds together does not depend on the number of processes.

    Args:
        sizes: Number of groups of each source.
        groups_per_step: Groups of one optimiser step, over all processes.
        seed: What the shuffles are drawn from.
        weights: Shares of the sources in every epoch (MiniGPT-4: 115 and 14); `None`: each group once an epoch.
        steps_per_epoch: Length of an epoch; `None`: as many steps as hold every group once.

    Raises:
        ValueError: A source is empty, or a number is out of range.
    """

    def __init__(
        self,
        sizes: list[int],
        groups_per_step: int,
        seed: int = 0,
        weights: list[float] | None = None,
        steps_per_epoch: int | None = None,
    ):
        if not sum(sizes) or (weights is not None and min(sizes) < 1):
            raise ValueError(f"Every source needs at least one group of rows; their numbers are {sizes}.")
        if groups_per_step < 1 or (steps_per_epoch is not None and steps_per_epoch < 1):
            raise ValueError("groups_per_step and steps_per_epoch must be at least 1.")
        if weights is not None and (len(weights) != len(sizes) or min(weights) <= 0):
            raise ValueError(f"{len(sizes)} sources need as many weights above 0, got {weights}.")
        self.sizes, self.groups_per_step, self.seed = list(sizes), groups_per_step, seed
        total = sum(sizes)
        self.steps_per_epoch = steps_per_epoch or -(-total // groups_per_step)
        # Without weights an epoch of its own length is one pass: its last step may be short.
        one_pass = weights is None and steps_per_epoch is None
        self.slots = total if one_pass else self.steps_per_epoch * groups_per_step
        self.shares = sizes if one_pass else _shares(weights or sizes, self.slots)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def __getstate__(self) -> dict[str, Any]:
        """Without the drawn epochs: a process that prepares steps draws its own."""
        return {name: value for name, value in vars(self).items() if name != "_epoch"}

    def __setstate__(self, state: dict[str, Any]):
        vars(self).update(state)
        self._epoch = lru_cache(maxsize=2)(self._draw_epoch)

    def describe(self) -> dict[str, object]:
        """All that the order is a function of; two orders with equal descriptions are equal."""
        return {
            "groups of each source": self.sizes,
            "slots of each source in an epoch": [int(share) for share in self.shares],
            "pictures_per_step": self.groups_per_step,
            "steps_per_epoch": self.steps_per_epoch,
            "seed": self.seed,
        }

    def step(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """(source, group) pairs of global step `step`, counted over all epochs, for process `rank` of `world`."""
        epoch, inside = divmod(step, self.steps_per_epoch)
        start = inside * self.groups_per_step
        return self._epoch(epoch)[start : start + self.groups_per_step][rank::world]

    def _draw_epoch(self, epoch: int) -> list[tuple[int, int]]:
        of_slot = np.repeat(np.arange(len(self.sizes)), self.shares)
        _generator(self.seed, epoch).shuffle(of_slot)
        groups = np.empty(self.slots, dtype=np.int64)
        for source, share in enumerate(self.shares):
            groups[of_slot == source] = self._draws(source, epoch * share, share)
        return list(zip(of_slot.tolist(), groups.tolist(), strict=True))

    def _draws(self, source: int, first: int, count: int) -> np.ndarray:
        """Draws `first` … `first + count - 1` of the endless walk through a source."""
        size, pieces = self.sizes[source], []
        while count:
            turn, start = divmod(first, size)
            piece = _generator(self.seed, source, turn, 1).permutation(size)[start : start + count]
            pieces.append(piece)
            first, count = first + len(piece), count - len(piece)
        return np.concatenate(pieces) if pieces else np.empty(0, dtype=np.int64)


def _generator(*numbers: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence(list(numbers))))


def choice(options: int, *numbers: int) -> int:
    """One of `range(options)`, drawn from `numbers` alone."""
    return int(_generator(*numbers).integers(options))


def uniform(*numbers: int) -> float:
    """A number in [0, 1), drawn from `numbers` alone."""
    return float(_generator(*numbers).random())


def _shares(weights: list[float] | list[int], slots: int) -> list[int]:
    """`slots` divided by `weights` without a remainder: largest fractions are rounded up."""
    exact = [slots * weight / sum(weights) for weight in weights]
    shares = [int(value) for value in exact]
    by_fraction = sorted(range(len(exact)), key=lambda index: shares[index] - exact[index])
    for index in by_fraction[: slots - sum(shares)]:
        shares[index] += 1
    return shares

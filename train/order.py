"""Which group of rows is seen when: a function of (seed, step, world size) with no memory, and nothing to replay."""

from functools import lru_cache

import numpy as np

KIND = "keyed permutations of each source, in fixed shares of every step"
ROUNDS = 10  # of the network; four make it hard to tell from a random permutation, more cost next to nothing
SMALL = 1 << 12  # so many groups are shuffled as a whole: a network has too few keys to reach all their orders


class SampleOrder:
    """The order of the groups of one or several sources.

    Every source walks through permutations of its own groups, one after the other across epochs, so that each of its
    groups comes up once before any comes up again. The sources are mixed in fixed shares: of the first `i` slots of an
    epoch each has filled its share of `i`, to one slot. Step `s` takes the slots from `s * groups_per_step` on, and
    rank `r` of `w` every `w`-th of them: what the step holds together does not depend on the number of processes.

    Nothing is drawn ahead and nothing kept: a permutation is computed where it is asked for, by a Feistel network
    whose keys follow from the seed, so any step of any epoch of 1e9 groups takes less than a millisecond.

    Args:
        sizes: Number of groups of each source.
        groups_per_step: Groups of one optimiser step, over all processes.
        seed: What the permutations are drawn from.
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
        self.shares = list(sizes) if one_pass else _shares(weights or sizes, self.slots)

    def describe(self) -> dict[str, object]:
        """All that the order is a function of; two orders with equal descriptions are equal."""
        return {
            "kind": KIND,
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
        end = min(start + self.groups_per_step, self.slots)
        before, after = self._filled(epoch, start), self._filled(epoch, end)
        sources = np.repeat(np.arange(len(self.sizes)), np.subtract(after, before))
        if len(self.sizes) > 1:
            _generator(self.seed, epoch, inside, 4).shuffle(sources)
        groups = np.empty(len(sources), np.int64)
        for source, share in enumerate(self.shares):
            if after[source] > before[source]:
                groups[sources == source] = self._draws(
                    source, epoch * share + before[source], epoch * share + after[source]
                )
        return list(zip(sources.tolist(), groups.tolist(), strict=True))[rank::world]

    def _filled(self, epoch: int, slot: int) -> list[int]:
        """How many of the first `slot` slots of an epoch each source has filled: evenly spread over the epoch, from
        where in its stride each source begins is drawn anew for every epoch."""
        filled, left, slots = [], slot, self.slots
        for share, phase in zip(self.shares, _phases(self.seed, epoch, len(self.shares)), strict=True):
            taken = (left * share + int(phase * slots)) // slots if slots else 0
            filled.append(taken)
            left, slots = left - taken, slots - share
        return filled

    def _draws(self, source: int, first: int, end: int) -> np.ndarray:
        """Draws `first` … `end - 1` of the endless walk through a source."""
        size, pieces = self.sizes[source], []
        while first < end:
            turn, start = divmod(first, size)
            count = min(end - first, size - start)
            pieces.append(permuted(np.arange(start, start + count), size, self.seed, source, turn))
            first += count
        return np.concatenate(pieces)


def permuted(places: np.ndarray, size: int, *numbers: int) -> np.ndarray:
    """What stands at these places of a permutation of `range(size)` that is drawn from `numbers`, `(n,)` int64.

    The permutation is a Feistel network (Luby and Rackoff 1988) on as many bits as `size` takes, whose results beyond
    `size` go through it again until they are below ("cycle walking", Black and Rogaway 2002): less than two passes on
    average. Its halves may differ by a bit.
    """
    if size <= SMALL:
        return _shuffled(size, *numbers)[places]
    bits = (size - 1).bit_length()
    keys, values = _keys(*numbers), np.asarray(places, np.uint64)
    values = _network(values, bits, keys)
    while len(outside := np.flatnonzero(values >= size)):
        values[outside] = _network(values[outside], bits, keys)
    return values.astype(np.int64)


def _network(values: np.ndarray, bits: int, keys: np.ndarray) -> np.ndarray:
    """A permutation of `range(2 ** bits)`: each round changes one half by a function of the other alone."""
    low = np.uint64(bits // 2)
    halves = [values >> low, values & np.uint64((1 << int(low)) - 1)]
    masks = [np.uint64((1 << (bits - int(low))) - 1), np.uint64((1 << int(low)) - 1)]
    for number, key in enumerate(keys):
        changed = number % 2
        halves[changed] = halves[changed] ^ (_mixed(halves[1 - changed] + key) & masks[changed])
    return halves[0] << low | halves[1]


def _mixed(values: np.ndarray) -> np.ndarray:
    """Every bit of the result hangs on every bit given: the finaliser of SplitMix64 (Steele, Lea and Flood 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=256)
def _keys(*numbers: int) -> np.ndarray:
    return np.random.SeedSequence([*numbers, 1]).generate_state(ROUNDS, np.uint64)


@lru_cache(maxsize=64)
def _shuffled(size: int, *numbers: int) -> np.ndarray:
    return _generator(*numbers, 1).permutation(size)


@lru_cache(maxsize=2)
def _phases(seed: int, epoch: int, sources: int) -> list[float]:
    return _generator(seed, epoch, 5).random(sources).tolist()


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

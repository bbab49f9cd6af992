"""Sample order: a pure function of (seed, epoch, step, world size)."""

import pickle
import tracemalloc
from collections import Counter

import numpy as np
import pytest

from jminigpt4.train import order as order_module
from jminigpt4.train.order import SampleOrder, permuted


def epoch_of(order: SampleOrder, epoch: int) -> list[tuple[int, int]]:
    first = epoch * order.steps_per_epoch
    return [pair for step in range(first, first + order.steps_per_epoch) for pair in order.step(step)]


def test_an_epoch_holds_every_group_once_and_another_epoch_another_order():
    order = SampleOrder([7, 12], groups_per_step=4)
    everything = sorted([(0, group) for group in range(7)] + [(1, group) for group in range(12)])
    epochs = [epoch_of(order, epoch) for epoch in range(3)]
    assert order.steps_per_epoch == 5
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_any_step_is_drawn_without_the_steps_before_it():
    orders = [SampleOrder([50], 8, seed=3) for _ in range(2)]
    forwards = [orders[0].step(step) for step in range(30)]
    assert [orders[1].step(step) for step in reversed(range(30))] == forwards[::-1]
    assert SampleOrder([50], 8, seed=4).step(0) != forwards[0]


@pytest.mark.parametrize("world", [2, 3, 5])
def test_the_number_of_processes_changes_no_step(world):
    order = SampleOrder([20, 9], 6, seed=1, weights=[2.0, 1.0])
    for step in range(12):
        shares = [order.step(step, rank, world) for rank in range(world)]
        assert sorted(pair for share in shares for pair in share) == sorted(order.step(step))


def test_weights_are_kept_exactly_and_no_source_repeats_before_it_is_through():
    order = SampleOrder([40, 300], groups_per_step=43, weights=[115, 14], steps_per_epoch=3)
    drawn = [epoch_of(order, epoch) for epoch in range(20)]
    assert all(Counter(source for source, _ in epoch) == {0: 115, 1: 14} for epoch in drawn)
    for source, size in ((0, 40), (1, 300)):
        groups = [group for epoch in drawn for chosen, group in epoch if chosen == source]
        for start in range(0, len(groups), size):
            turn = groups[start : start + size]
            assert len(set(turn)) == len(turn)


def test_resuming_elsewhere_neither_loses_nor_repeats():
    """Seven steps on one process, the rest of the epoch on three."""
    order = SampleOrder([61], 5, seed=9)
    first = [pair for step in range(7) for pair in order.step(step)]
    rest = [
        pair for step in range(7, order.steps_per_epoch) for rank in range(3) for pair in order.step(step, rank, 3)
    ]
    assert sorted(first + rest) == [(0, group) for group in range(61)]


@pytest.mark.parametrize("arguments", [([0], 4), ([3], 0)])
def test_impossible_orders_are_refused(arguments):
    with pytest.raises(ValueError, match="at least"):
        SampleOrder(*arguments)
    with pytest.raises(ValueError, match="weights"):
        SampleOrder([3, 4], 2, weights=[1.0])


SIZES = [1, 2, 3, 5, 8, 16, 17, 31, 61, 128, 257, 997, 1000, 1023, 1024, 1025]
LARGE = [4095, 4096, 4097, 5000, 7919, 8191, 8192, 8193, 65535, 65536, 65537, 100_000, 104_729]


@pytest.mark.parametrize("size", SIZES + LARGE)
def test_a_permutation_takes_every_number_once(size, monkeypatch):
    for least in {0, order_module.SMALL}:
        monkeypatch.setattr(order_module, "SMALL", least)
        for seed in range(3 if size < 5000 else 1):
            assert sorted(permuted(np.arange(size), size, seed, 7).tolist()) == list(range(size))


def test_a_place_is_drawn_without_the_others():
    whole = permuted(np.arange(100_000), 100_000, 3)
    places = np.array([99_999, 0, 5, 70_000])
    assert permuted(places, 100_000, 3).tolist() == whole[places].tolist()
    assert [permuted(np.array([place]), 100_000, 3)[0] for place in places] == whole[places].tolist()


@pytest.mark.parametrize("size", [4097, 50_000, 65_536])
def test_a_network_mixes_as_a_shuffle_does(size):
    """Where numbers land, what follows what, and how two keys and two places differ: within four standard deviations
    of what independent draws give."""
    one, other = permuted(np.arange(size), size, 1), permuted(np.arange(size), size, 2)
    parts = np.histogram2d(np.arange(size), one, bins=16)[0]
    assert abs(((parts - size / 256) ** 2 / (size / 256)).sum() - 225) < 4 * (2 * 225) ** 0.5
    centred = (one - one.mean()) / one.std()
    for found in (centred[1:] @ centred[:-1], centred @ ((other - other.mean()) / other.std()), centred @ _ramp(size)):
        assert abs(found) < 4 * size**0.5
    assert (one == other).sum() < 8 and (one == np.arange(size)).sum() < 8
    assert abs((one % 2 == np.arange(size) % 2).mean() - 0.5) < 4 * 0.5 / size**0.5


def _ramp(size: int) -> np.ndarray:
    places = np.arange(size)
    return (places - places.mean()) / places.std()


def test_large_sources_keep_all_that_small_ones_keep():
    """Two sources beyond what is shuffled as a whole: weights exact, no group twice before all once, any world."""
    order = SampleOrder([5000, 9001], groups_per_step=100, seed=2, weights=[3, 1], steps_per_epoch=40)
    drawn = [epoch_of(order, epoch) for epoch in range(14)]
    assert all(Counter(source for source, _ in epoch) == {0: 3000, 1: 1000} for epoch in drawn)
    for source, size in ((0, 5000), (1, 9001)):
        groups = [group for epoch in drawn for chosen, group in epoch if chosen == source]
        for start in range(0, len(groups), size):
            turn = groups[start : start + size]
            assert len(set(turn)) == len(turn)
    shares = [order.step(7, rank, 3) for rank in range(3)]
    assert sorted(pair for share in shares for pair in share) == sorted(order.step(7))


def test_sources_are_spread_over_an_epoch_and_shuffled_in_a_step():
    """A rare one comes up everywhere in the epoch; each process gets of all sources."""
    order = SampleOrder([1000, 1000, 3], 20, seed=5)
    assert all(abs(sum(source == 0 for source, _ in order.step(step)) - 10) <= 1 for step in range(100))
    rare = [
        step for epoch in range(40) for step in range(100) if any(s == 2 for s, _ in order.step(100 * epoch + step))
    ]
    assert len({step // 10 for step in rare}) == 10
    assert {source for source, _ in order.step(3, rank=0, world=2)} == {0, 1}


def test_a_step_of_an_epoch_far_away_takes_neither_memory_nor_the_epochs_before():
    order = SampleOrder([400_000_000, 10**9], 256, seed=1, weights=[115, 14])
    tracemalloc.start()
    far = order.step(10**9)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(set(far)) == 256 and far == SampleOrder([400_000_000, 10**9], 256, 1, [115, 14]).step(10**9)
    assert all(group < (400_000_000, 10**9)[source] for source, group in far)
    assert peak < 1_000_000 and len(pickle.dumps(order)) < 1000

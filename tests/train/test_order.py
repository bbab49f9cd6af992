"""Sample order: a pure function of (seed, epoch, step, world size)."""

from collections import Counter

import pytest

from jminigpt4.train.order import SampleOrder


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

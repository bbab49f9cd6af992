"""Intervals hold what they promise, and only real differences are called real."""

import numpy as np
import pytest

from jminigpt4.evaluate.intervals import Difference, compare, holm, interval, resampled
from jminigpt4.evaluate.metrics.measure import Measure, mean_of


def names(count: int) -> list[str]:
    return [str(number) for number in range(count)]


def test_an_interval_is_as_wide_as_theory_says():
    values = np.random.default_rng(0).normal(50, 10, 400)
    low, high = interval(mean_of("m", values), names(400))
    assert (high - low) / 2 == pytest.approx(1.96 * values.std() / 20, rel=0.1)
    assert low < values.mean() < high


def test_an_interval_covers_the_truth_nineteen_times_in_twenty():
    generator = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        low, high = interval(mean_of("m", generator.normal(50, 10, 60)), names(60), resamples=300)
        covered += low <= 50 <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_questions_on_one_picture_are_drawn_together():
    values = np.repeat(np.random.default_rng(0).normal(50, 10, 50), 8)
    pictures = [str(number // 8) for number in range(400)]
    together, alone = interval(mean_of("m", values), pictures), interval(mean_of("m", values), names(400))
    assert (together[1] - together[0]) / (alone[1] - alone[0]) == pytest.approx(8**0.5, rel=0.15)


def test_resampling_is_a_function_of_its_seed_and_keeps_the_total():
    statistics = np.stack([np.arange(10.0), np.ones(10)], axis=1)
    first, again = (resampled(statistics, names(10), 50, seed=3) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    assert (first[:, 1] == 10).all() and first[:, 0].std() > 0


def test_no_hit_among_few_is_no_proof_of_none():
    low, high = interval(mean_of("hits", [0.0] * 10, share=True), names(10))
    assert low == 0 and high == pytest.approx(30.85, abs=0.01)  # Clopper-Pearson for 0 of 10
    assert interval(mean_of("hits", [100.0] * 10, share=True), names(10)) == pytest.approx(
        (100 - 30.85, 100), abs=0.01
    )


def test_items_without_a_score_are_left_out():
    measure = mean_of("m", [100, np.nan, 0])
    assert measure.value() == 50 and measure.value(np.array([True, True, False])) == 100
    assert np.isnan(measure.value(np.array([False, True, False])))


def test_a_corpus_score_is_combined_from_sums_and_not_averaged():
    ratio = Measure("r", np.array([[1.0, 1.0], [0.0, 9.0]]), lambda sums: 100 * sums[..., 0] / sums[..., 1])
    assert ratio.value() == 10


def test_a_real_difference_is_told_from_chance():
    generator = np.random.default_rng(0)
    base = generator.normal(50, 20, 200)
    better = compare(mean_of("m", base + generator.normal(3, 5, 200)), mean_of("m", base), names(200))
    same = compare(mean_of("m", base + generator.normal(0, 5, 200)), mean_of("m", base), names(200))
    assert better.low > 0 and better.p < 0.01 and better.difference == pytest.approx(3, abs=1)
    assert same.low < 0 < same.high and same.p > 0.05
    marked = holm([same, better])
    assert [each.real for each in marked] == [False, True]


def test_a_model_does_not_differ_from_itself():
    measure = mean_of("m", np.arange(20.0))
    itself = compare(measure, measure, names(20))
    assert (itself.difference, itself.low, itself.high, itself.p) == (0, 0, 0, 1)


def test_holm_asks_more_where_more_is_compared():
    chances = [Difference(str(p), 1, 0, 0, 1, p) for p in (0.03, 0.01, 0.04)]
    assert [each.real for each in holm(chances)] == [False, True, False]
    assert holm(chances[:1])[0].real


def test_other_items_cannot_be_compared():
    with pytest.raises(ValueError, match="not answered the same items"):
        compare(mean_of("m", [1, 2]), mean_of("m", [1, 2, 3]), names(2))

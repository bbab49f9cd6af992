"""What every metric gives: numbers per item that can be added up, and how their sum becomes the score."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Combine = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Measure:
    """One metric on all items of a benchmark.

    Scores of subsets and of resamples are sums over items, so intervals and categories need no metric anew.

    Args:
        name: The score's name, with tokenizer and version where they matter.
        statistics: `(n_items, n_statistics)`, float64.
        combine: Sums of statistics, `(…, n_statistics)`, to scores, `(…)`; NaN where there is nothing to score.
        items: Score of every item by itself, `(n_items,)`, what best and worst items are ranked by; `None` where an
            item alone has none.
        share: Whether every item is either right, 100, or wrong, 0.
    """

    name: str
    statistics: np.ndarray
    combine: Combine
    items: np.ndarray | None = None
    share: bool = False

    def value(self, chosen: np.ndarray | None = None) -> float:
        """Score of all items, or of those chosen by a boolean mask `(n_items,)`."""
        statistics = self.statistics if chosen is None else self.statistics[chosen]
        return float(self.combine(statistics.sum(0)))


def ratio(sums: np.ndarray) -> np.ndarray:
    """First over second statistic: with ones in the second place, a mean."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(sums[..., 1] > 0, sums[..., 0] / sums[..., 1], np.nan)


def mean_of(name: str, scores: Sequence[float] | np.ndarray, share: bool = False) -> Measure:
    """The mean of one score an item; NaN marks items that have none."""
    values = np.asarray(scores, dtype=np.float64)
    there = np.isfinite(values)
    return Measure(name, np.stack([np.where(there, values, 0), there], axis=1), ratio, values, share)

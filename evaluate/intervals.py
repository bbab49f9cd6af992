"""How far a score may be off: bootstrap intervals, and which differences between two models are real."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from .metrics.measure import Measure

RESAMPLES = 1000
LEVEL = 0.95
_CELLS_AT_ONCE = 20_000_000  # of the matrix of draws: 160 MB


def _cluster_sums(statistics: np.ndarray, clusters: Sequence[str]) -> np.ndarray:
    """Sums over the items of each cluster, `(n_clusters, n_statistics)`, in order of first appearance."""
    places: dict[str, int] = {}
    index = np.array([places.setdefault(cluster, len(places)) for cluster in clusters])
    sums = np.zeros((len(places), statistics.shape[1]))
    np.add.at(sums, index, statistics)
    return sums


def _draws(clusters: int, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn in each resample, a few resamples at a time, `(some, clusters)`."""
    generator = np.random.default_rng(seed)
    step = max(1, _CELLS_AT_ONCE // max(clusters, 1))
    for start in range(0, resamples, step):
        count = min(step, resamples - start)
        yield generator.multinomial(clusters, np.full(clusters, 1 / clusters), size=count).astype(np.float64)


def resampled(statistics: np.ndarray, clusters: Sequence[str], resamples: int, seed: int) -> np.ndarray:
    """Sums of statistics in bootstrap resamples, `(resamples, n_statistics)`.

    Whole clusters are drawn: questions on one picture are right or wrong together, and drawing them one by one would
    make intervals too narrow.
    """
    sums = _cluster_sums(statistics, clusters)
    return np.concatenate([drawn @ sums for drawn in _draws(len(sums), resamples, seed)])


def interval(
    measure: Measure, clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> tuple[float, float]:
    """Percentile bootstrap interval of 95 % of a score.

    Where everything is right, or everything wrong, every resample is the same; the interval is then the exact
    binomial one (Clopper and Pearson 1934) of as many independent trials as there are clusters.
    """
    value = measure.value()
    if measure.share and value in (0.0, 100.0):
        reach = 100 * (1 - ((1 - LEVEL) / 2) ** (1 / len(set(clusters))))
        return (0.0, reach) if value == 0 else (100 - reach, 100.0)
    scores = measure.combine(resampled(measure.statistics, clusters, resamples, seed))
    return _percentiles(scores)


def _percentiles(scores: np.ndarray) -> tuple[float, float]:
    if not np.isfinite(scores).any():
        return float("nan"), float("nan")
    low, high = np.nanquantile(scores, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


@dataclass(frozen=True)
class Difference:
    """One metric of two models on the same items: this model's score less the other's.

    Args:
        metric: Name of the metric.
        own, other: The two scores.
        low, high: 95 % interval of the difference, from resampling the same pictures for both.
        p: Share of resamples on the far side of zero, two-sided.
        real: Whether the difference stands when all metrics compared are taken together (Holm's correction at 5 %).
    """

    metric: str
    own: float
    other: float
    low: float
    high: float
    p: float
    real: bool = False

    @property
    def difference(self) -> float:
        return self.own - self.other


def compare(
    own: Measure, other: Measure, clusters: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Paired bootstrap of the difference of one metric (Koehn 2004).

    Raises:
        ValueError: The two are not of the same items.
    """
    if own.statistics.shape != other.statistics.shape:
        raise ValueError(f"{own.name}: the two models have not answered the same items.")
    width = own.statistics.shape[1]
    sums = resampled(np.hstack([own.statistics, other.statistics]), clusters, resamples, seed)
    differences = own.combine(sums[:, :width]) - other.combine(sums[:, width:])
    differences = differences[np.isfinite(differences)]
    # One more on either side: no finite number of resamples proves a chance of zero.
    beyond = 1 + min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    p = min(1.0, 2 * beyond / (len(differences) + 1))
    return Difference(own.name, own.value(), other.value(), *_percentiles(differences), p)


def holm(differences: Sequence[Difference], level: float = 1 - LEVEL) -> list[Difference]:
    """The same differences, marked `real` where Holm's step-down procedure rejects chance for all of them together."""
    order = sorted(range(len(differences)), key=lambda index: differences[index].p)
    marked = list(differences)
    for rank, index in enumerate(order):
        each = differences[index]
        if each.p > level / (len(differences) - rank):
            break
        marked[index] = Difference(each.metric, each.own, each.other, each.low, each.high, each.p, True)
    return marked

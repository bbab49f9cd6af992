"""`scores.json`: everything a table or a model card needs to know of an evaluation, for machines."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..checkpoint import HUB_RESULTS, SCORES, finished_file
from .contamination import Overlap
from .controls import BLIND, SHUFFLED, ControlScores
from .intervals import RESAMPLES
from .scoring import Result, Score


@dataclass
class Sheet:
    """Results of one model on some benchmarks.

    Args:
        model: Its name.
        results: One for each benchmark.
        settings: Benchmark -> what its answers were made with.
        overlaps: Training files against benchmarks.
        other: Name of the model it is compared with.
        controls: Benchmark -> how the model answers without its pictures.
        hub_results: Those of the results that the Hub has a place for; see [`hub_result`].
    """

    model: str
    results: list[Result]
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    overlaps: list[Overlap] = field(default_factory=list)
    other: str | None = None
    controls: dict[str, ControlScores] = field(default_factory=dict)
    hub_results: list[dict[str, Any]] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """`{"model", "benchmarks": [{"name", "dataset", "metric", "value", "low", "high", "n"}, …], …}`; numbers that
        do not exist are `None`."""
        return _plain(
            {
                "model": self.model,
                "benchmarks": [
                    {"name": result.request.title, "dataset": result.request.dataset, **asdict(score)}
                    for result in self.results
                    for score in result.scores
                ],
                "interval": f"95 %, percentile bootstrap over pictures, {RESAMPLES} resamples, seed 0",
                "health": {result.request.title: result.health.as_dict() for result in self.results},
                "categories": {
                    result.request.title: {
                        name: {value: [asdict(score) for score in scores] for value, scores in table.items()}
                        for name, table in result.categories.items()
                    }
                    for result in self.results
                },
                "differences": {
                    result.request.title: [
                        asdict(each) | {"difference": each.difference} for each in result.differences
                    ]
                    for result in self.results
                    if result.differences
                },
                "compared_with": self.other,
                "controls": {title: _controls(each) for title, each in self.controls.items()},
                "contamination": [each.as_dict() for each in self.overlaps],
                "notes": {result.request.title: result.notes for result in self.results if result.notes},
                "settings": self.settings,
                HUB_RESULTS: self.hub_results,
            }
        )

    def write(self, folder: Path) -> Path:
        """Writes `scores.json` as a whole and returns its path."""
        path = folder / SCORES
        with finished_file(path) as file:
            file.write_text(json.dumps(self.as_dict(), ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return path

    def table(self) -> str:
        """The scores as lines for a terminal."""
        rows = [("benchmark", "metric", "score", "95 % interval", "n", "blind", "shuffled")]
        rows += [
            (
                result.request.title,
                score.metric,
                f"{score.value:.2f}",
                f"{score.low:.2f} – {score.high:.2f}",
                f"{score.n:,}",
                *self.without_pictures(result, score),
            )
            for result in self.results
            for score in result.scores
        ]
        return "\n".join(_aligned(rows))

    def without_pictures(self, result: Result, score: Score) -> tuple[str, str]:
        """A score without pictures and with those of others, as a table shows them: nothing where not asked."""
        controls = self.controls.get(result.request.title)
        if controls is None or score.metric != controls.pictured.metric:
            return "", ""
        blind, shuffled = (
            "–" if each is None else f"{each.value:.2f}" for each in (controls.blind, controls.shuffled)
        )
        return blind, shuffled


def _controls(controls: ControlScores) -> dict[str, Any]:
    scores = {name: getattr(controls, name) for name in ("pictured", BLIND, SHUFFLED)}
    right = [{"id": item.id, "question": item.question, "answer": said} for item, said in controls.answered_blind]
    return {name: each and asdict(each) for name, each in scores.items()} | {"answered_blind": right}


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""Scores as the Hub keeps them, in `.eval_results/*.yaml` of a model's repository.

The format is https://github.com/huggingface/hub-docs/blob/main/eval_results.yaml, explained at
https://huggingface.co/docs/hub/eval-results; the Hub shows results of data sets that are registered as benchmarks.
"""

from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from .. import __version__
from .scoring import Result


def hub_result(result: Result, date: str, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The benchmark's own score as an entry of the Hub, or `None` where the Hub has no such result: no data set there,
    a protocol that its task does not mean, another repository's copy, a part of the items, or no score yet.

    Args:
        result: Scores of one benchmark.
        date: Day of the answers, `2026-11-26`.
        settings: What the answers were made with.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    request = result.request
    task = request.benchmark.hub_tasks.get(request.protocol)
    elsewhere = request.path is not None and not request.path.exists()
    if task is None or elsewhere or request.only is not None or not result.scores:
        return None
    score = result.scores[0]
    entry = EvalResultEntry(
        dataset_id=request.dataset,
        task_id=task,
        value=round(score.value, 4),
        date=date,
        notes="; ".join(_notes(result, settings)),
    )
    return eval_result_entries_to_yaml([entry])[0]


def _notes(result: Result, settings: dict[str, Any]) -> Iterator[str]:
    score = result.scores[0]
    protocol = f", protocol {result.request.protocol}" if result.request.protocol else ""
    yield f"{score.metric}{protocol}"
    yield f"{score.n} items, 95 % interval {score.low:.2f} to {score.high:.2f}"
    if "max_new_tokens" in settings:
        drawn = "sampled" if settings.get("do_sample") else "greedy"
        yield f"{drawn}, at most {settings['max_new_tokens']} tokens"
    yield f"jminigpt4 {__version__}"


def day_of(answers: Path) -> str:
    """The day, in universal time, on which a file of answers was last written to."""
    return datetime.fromtimestamp(answers.stat().st_mtime, timezone.utc).date().isoformat()

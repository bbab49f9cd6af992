"""One self-contained HTML page: scores with intervals, published scores beside them, and what the model says."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checkpoint import finished_file
from ..data.pictures import Picture
from ..inference.data_address import thumbnail
from .items import Item, picture_content
from .literature import anchors
from .metrics.measure import Measure
from .scoring import Result
from .sheet import Sheet

REPORT = "report.html"
EXAMPLES = 6  # best and worst items each
THUMBNAIL = 240  # pixels
BARS = 20


@dataclass(frozen=True)
class Example:
    """An item with its answer on the page; `pictures` are data addresses of JPEGs."""

    item: Item
    answer: str
    score: float | None
    cut_off: bool | None
    pictures: list[str]


def write_report(sheet: Sheet, folder: Path) -> Path:
    """Writes `report.html`: nothing in it is fetched from elsewhere.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: A picture cannot be read.
    """
    import jinja2

    loader = jinja2.FileSystemLoader(Path(__file__).parent / "templates")
    environment = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["number"] = lambda value, places=2: "–" if not _exists(value) else f"{value:.{places}f}"
    page = environment.get_template("report.html.jinja").render(
        sheet=sheet,
        data=sheet.as_dict(),
        sections=[_section(result, sheet) for result in sheet.results],
        settings={name: json.dumps(each, ensure_ascii=False, indent=1) for name, each in sheet.settings.items()},
    )
    path = folder / REPORT
    with finished_file(path) as file:
        file.write_text(page, encoding="utf-8")
    return path


def _exists(value: Any) -> bool:
    return value is not None and bool(np.isfinite(value))


def _section(result: Result, sheet: Sheet) -> dict[str, Any]:
    ranking = next((measure for measure in result.measures if measure.items is not None), None)
    worst, best = _worst_and_best(result, ranking)
    return {
        "result": result,
        "dataset": result.request.dataset,
        "pictures": len({picture for item in result.items for picture in item.pictures}),
        "anchors": anchors(result.request),
        "controls": sheet.controls.get(result.request.title),
        "overlaps": [each for each in sheet.overlaps if each.benchmark == result.request.title],
        "histograms": list(_histograms(result, ranking)),
        "ranking": ranking.name if ranking else None,
        "worst": worst,
        "best": best,
    }


def _worst_and_best(result: Result, ranking: Measure | None) -> tuple[list[Example], list[Example]]:
    """A few items from either end, no picture twice; without item scores, the first few."""
    if ranking is None or ranking.items is None:
        order = list(range(len(result.items)))
        return [], list(_pick(result, order, None))
    # Where the first metric ties, as right and wrong do, the others decide.
    keys = [measure.items for measure in reversed(result.measures) if measure.items is not None]
    order = [int(place) for place in np.lexsort(keys) if np.isfinite(ranking.items[place])]
    half = len(order) // 2
    worst = list(_pick(result, order[:half] if half else order, ranking.items))
    return worst, list(_pick(result, order[half:][::-1] if half else [], ranking.items))


def _pick(result: Result, order: list[int], scores: np.ndarray | None) -> Iterator[Example]:
    seen: set[str] = set()
    for place in order:
        item, prediction = result.items[place], result.predictions[place]
        if item.cluster in seen:
            continue
        seen.add(item.cluster)
        score = None if scores is None else float(scores[place])
        yield Example(item, prediction.answer, score, prediction.cut_off, [_shown(each) for each in item.pictures])
        if len(seen) == EXAMPLES:
            return


def _shown(picture: Picture) -> str:
    return thumbnail(picture_content(picture), f"The picture {picture.name}", THUMBNAIL)


def _histograms(result: Result, ranking: Measure | None) -> Iterator[tuple[str, str]]:
    """Title and SVG of the distribution of scores and of lengths."""
    if ranking is not None and ranking.items is not None:
        scores = ranking.items[np.isfinite(ranking.items)]
        yield f"{ranking.name.split(' [')[0]} of single items", _bars(scores, (0, max(100.0, float(scores.max()))))
    lengths = np.array([len(each.answer) for each in result.predictions], dtype=float)
    yield "length of answers in characters", _bars(lengths, (0, max(float(lengths.max()), 1.0)))


def _bars(values: np.ndarray, span: tuple[float, float]) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6, 1.9), layout="constrained")
    axes = figure.add_subplot()
    axes.hist(values, bins=BARS, range=span, color="#3b6ea5")
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_ylabel("items")
    content = io.StringIO()
    figure.savefig(content, format="svg", transparent=True, metadata={"Date": None})
    drawn = content.getvalue()
    return drawn[drawn.index("<svg") :]

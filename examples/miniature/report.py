"""The tables, the learning curve, the contact sheet and ten conversations of the miniature.

`python report.py WORK` reads answers/, budget.json, photographs.json and stages.json of WORK and the runs ->
WORK/table.md and WORK/conversations.md; in this folder README.md's tables, results.json, learning_curve.png,
contact_sheet.png and conversations.md. Rows that were not examined in WORK stay as results.json has them; pictures and
conversations are made where the projection of seed 0 was trained.
"""

import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import conversations
import matplotlib
import numpy as np
import torch
import typer
from align import with_projection
from budget import QFORMER as NEAREST
from drawings import HERE, SAMPLES
from examine import CANDIDATES, Examination, encode, read_answers
from PIL import Image, ImageDraw, ImageFont
from scenes import plain_view
from scoring import Scores, malformed, mean_and_interval, name_said, scores_of, well_formed
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"twemoji": "Twemoji (colour)", "openmoji": "OpenMoji (line)", "emojione-v1": "EmojiOne 1 (colour)"}
SHEET_COLUMNS, SHEET_ROWS, CELL, DRAWN = 8, 5, 176, 160
TRAINED, SEED = "trained projection", ", seed "  # how rows are called, and the rows of single seeds
SAMPLED = "samples"  # names of the drawings that come with the demo
# Measures of the text's health -> how the table calls them.
HEALTH = {
    "repeated_ngrams": "repeated 4-grams",
    "loops": "loops",
    "unfinished": "unfinished",
    "empty": "empty",
    "not_japanese": "not Japanese",
}
# Measure -> how the table calls it, and the goals that were set before: of Twemoji / OpenMoji, where they differ.
GOALS = {
    "name": ("name", "≥ 80 / 62"),
    "kind": ("kind, asked outright", "≥ 85 / 75"),
    "kind agrees": ("kind agrees with the name it says", "≥ 95"),
    "same name": ("the same name, asked for name and kind", ""),
    "colour": ("colour, clear ones", "≥ 65 / 50"),
    "edible": ("食べられる?, mean over its answers", ""),
    "confirmed": ("これは…ですか?, says rightly what it is", "≥ 85"),
    "confirmed, asked true": ("… where it is that", ""),
    "confirmed, asked false": ("… where it is not", ""),
    "both named": ("two things: both named", "≥ 45"),
    "left and right": ("two things: left and right right", ""),
    "left and right, both named": ("… of those whose both were named", "≥ 80"),
    "count": ("how many (1-3)", "≥ 75"),
    "count, balanced": ("… mean over one, two and three", ""),
    "fifth": ("fifth turn right where the first was", "≥ 90"),
    "english": ("What is this?, answered in Japanese", ""),
    "refused beyond": ("a thing beyond the list: 分かりません", ""),
    "refused listed": ("a listed thing: 分かりません", ""),
    "refused beyond at 10 % lost": ("beyond refused at 10 % of listed lost", "≥ 60"),
    "beyond by unknown": ("AUROC of 分かりません, listed or beyond", ""),
    "beyond by sure": ("AUROC of the answer's probability", ""),
    "calibration error": ("calibration error of the name's probability", ""),
    "well-formed": ("well-formed, of all answers", "100"),
    SAMPLED: (f"name of the {len(SAMPLES)} samples", "≥ 92 (11)"),
}
DIGITS = {"well-formed": 2, "calibration error": 1}  # of numbers that say nothing when they are round


Cells = dict[str, list[float]]
Numbers = dict[str, dict[str, dict[str, Cells]]]
"""`row -> artist -> "-" (the listed things) -> measure -> [mean, low, high]`."""


class Results:
    """Scores of all answers: row -> measure -> one number an item."""

    def __init__(self, work: Path):
        self.examination = Examination(work)
        self.said = read_answers(work)
        drawings, concepts = self.examination.drawings, self.examination.concepts
        artists = [drawings[v.drawings[0]].artist if not v.training else "" for v in self.examination.views]
        self.artists, self.pattern = np.array(artists), well_formed(concepts.values())
        self.scores: dict[str, dict[str, Scores]] = {
            row: scores_of(said, self.examination.asked, concepts, self.pattern)
            for row, said in tqdm(self.said.items(), desc="scores")
        }
        samples = self._samples()
        for scores in self.scores.values():
            if "name" in scores:
                scores[SAMPLED] = scores["name"].about(samples)

    def _samples(self) -> np.ndarray:
        """The pictures of the demo's sample drawings, the first of their concept by Twemoji."""
        drawings, views = self.examination.drawings, self.examination.views
        own = {d.concept: i for i, d in reversed(list(enumerate(drawings))) if d.artist == "twemoji"}
        wanted = {own[concept] for concept in SAMPLES.values() if concept in own}
        return np.array([n for n, v in enumerate(views) if not v.training and set(v.drawings) <= wanted], int)

    def malformed(self, row: str) -> list[str]:
        exams = self.said[row].values()
        return malformed((text for e in exams for answers in e["answers"] for text in answers), self.pattern)

    def cells(self, rows: list[str], artist: str) -> Cells:
        """All measures that every one of the rows has, as means over them."""
        views, cells = np.flatnonzero(self.artists == artist), {}
        for measure in self.scores[rows[0]]:
            if all(measure in self.scores[row] for row in rows):
                cell = mean_and_interval([self.scores[row][measure].about(views) for row in rows])
                if cell is not None:
                    cells[measure] = [round(value, 4) for value in cell]
        return cells


def seeds_of(title: str, rows: Iterable[str]) -> list[str]:
    """The rows whose mean a row is; none for a row that is one model's."""
    return [row for row in rows if row.startswith(f"{title}{SEED}")]


def numbers(results: Results) -> Numbers:
    """All rows that were examined, and the means over seeds before them."""
    means = dict.fromkeys(row.partition(SEED)[0] for row in results.said if SEED in row)
    rows = {title: seeds_of(title, results.said) for title in means} | {row: [row] for row in results.said}
    return {
        title: {artist: {"-": results.cells(members, artist)} for artist in TITLES}
        for title, members in tqdm(rows.items(), desc="intervals")
    }


def with_published(examined: Numbers, path: Path = HERE / "results.json") -> Numbers:
    """The rows of this folder, and those published before that were not examined in it; trained projections first."""
    published = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if kept := [row for row in published if row not in examined]:
        print(f"not examined in this folder, left as they are in {path.name}: {'; '.join(kept)}")
    rows = published | examined
    return {row: rows[row] for row in sorted(rows, key=lambda row: not row.startswith(TRAINED))}


def read_if_there(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


# ---------------------------------------------------------------------------------------------------------------------
# tables


def shown(cell: list[float] | None, percent: bool = True, interval: bool = True, digits: int | None = None) -> str:
    if cell is None:
        return "–"
    mean, low, high = (100 * v for v in cell) if percent else cell
    digits = (0 if interval else 1) if digits is None else digits
    return f"{mean:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})" if interval else f"{mean:.{digits}f}"


def markdown(rows: Numbers, budget: dict, photographs: dict) -> str:
    """The tables as Markdown; those without rows are left out."""
    tables = (
        _table_of_rows(rows),
        _table_of_goals(rows),
        _table_of_seeds(rows),
        _table_of_budget(budget),
        _table_of_readout(budget),
        _table_of_photographs(photographs),
        _table_of_stages(rows),
    )
    return "\n\n".join("\n".join(lines) for lines in tables if len(lines) > 2) + "\n"


def _head(*titles: str) -> list[str]:
    return [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]


def _table_of_rows(rows: Numbers) -> list[str]:
    lines = _head(
        "per cent right (95 % interval); description: chrF", "artist", "name", "kind", "colour", "description"
    )
    for title in (row for row in rows if SEED not in row):
        seeds = len(seeds_of(title, rows))
        bold = title.replace(TRAINED, f"**{TRAINED}**") if seeds else title
        for artist in TITLES:
            cells = rows[title][artist]["-"]
            texts = [
                shown(cells.get(q), percent=q != "description") for q in ("name", "kind", "colour", "description")
            ]
            mean = f" (mean of {seeds} seeds)" if seeds else ""
            lines.append(f"| {bold}{mean} | {TITLES[artist]} | {' | '.join(texts)} |")
    return lines


def _table_of_goals(rows: Numbers) -> list[str]:
    seeds = len(seeds_of(TRAINED, rows))
    lines = _head(f"{TRAINED}, mean of {seeds} seeds, per cent", "goal", *TITLES.values())
    if TRAINED not in rows:
        return []
    for measure, (title, goal) in GOALS.items():
        cells = [rows[TRAINED][artist]["-"].get(measure) for artist in TITLES]
        texts = " | ".join(shown(cell, digits=DIGITS.get(measure)) for cell in cells)
        if any(cells):
            lines.append(f"| {title} | {goal or '–'} | {texts} |")
    return lines


def _table_of_seeds(rows: Numbers) -> list[str]:
    lines = _head("single seeds", *(f"{title}: name, kind" for title in TITLES.values()))
    for row in (row for row in rows if SEED in row):
        cells = [", ".join(shown(rows[row][a]["-"].get(q), interval=False) for q in ("name", "kind")) for a in TITLES]
        lines.append(f"| {row.removeprefix(TRAINED).removeprefix(', ')} | {' | '.join(cells)} |")
    return lines


def _table_of_budget(budget: dict) -> list[str]:
    lines = _head("where it is lost, seed 0", *(f"{title}: name | kind" for title in TITLES.values()))
    lines[1] += "---|" * len(TITLES)
    for stage, artists in budget.get("stages", {}).items():
        cells = [shown(artists.get(a, {}).get(q)) for a in TITLES for q in ("name", "kind")]
        lines.append(f"| {stage} | {' | '.join(cells)} |")
    return lines


def _table_of_readout(budget: dict) -> list[str]:
    """What the language model alone reads of a name that is laid before it, before any picture."""
    readout = budget.get("readout", {})
    lines = _head("read by the language model alone", *(f"cosine {cosine}" for cosine in readout.get("said", {})))
    for title, key in (("the nearest name is the one meant", "nearest"), ("it is said", "said")):
        if key in readout:
            lines.append(f"| {title} | {' | '.join(f'{100 * share:.0f}' for share in readout[key].values())} |")
    return lines


def _table_of_photographs(photographs: dict) -> list[str]:
    """What the projection of each seed says about photographs."""
    seeds = len(next(iter(photographs.values()))["said"]) if photographs else 0
    lines = _head("photographs of scikit-image", "shows", *(f"seed {seed}" for seed in range(seeds)))
    for name, each in photographs.items():
        lines.append(f"| {name} | {each['shown']} | {' | '.join(each['said'])} |")
    return lines


def _table_of_stages(rows: Numbers) -> list[str]:
    lines = _head(
        "before and after stage 2", "artist", "descriptions, chrF", *(f"{name}, %" for name in HEALTH.values())
    )
    for title, artists in rows.items():
        for artist in (artist for artist in TITLES if "described" in artists.get(artist, {}).get("-", {})):
            cells = artists[artist]["-"]
            shares = [
                f"{cells[f'health, {measure}'][0]:.1f}, {cells[f'longer, {measure}'][0]:.1f}" for measure in HEALTH
            ]
            lines.append(
                f"| {title} | {TITLES[artist]} | {shown(cells['described'], percent=False)} | {' | '.join(shares)} |"
            )
    return lines


def stages(work: Path) -> Numbers:
    """The rows that `refine.py` wrote; measures of health are cells of one number, `health, loops`."""
    rows: Numbers = {}
    for title, artists in read_if_there(work / "stages.json").items():
        for artist, cells in artists.items():
            shares = {
                f"{kind}, {name}": [cells[kind][name] or 0.0] for kind in ("health", "longer") for name in HEALTH
            }
            scores = {name: cell for name, cell in cells.items() if name not in ("health", "longer")} | shares
            rounded = {name: [round(value, 4) for value in cell] for name, cell in scores.items()}
            rows.setdefault(title, {})[artist] = {"-": rounded}
    return rows


def nearest(budget: dict) -> Numbers:
    """The control without a language model, a line of the error budget, as a row of the table."""
    stage = budget.get("stages", {}).get(NEAREST)
    return {NEAREST: {artist: {"-": cells} for artist, cells in stage.items()}} if stage else {}


# ---------------------------------------------------------------------------------------------------------------------
# pictures


def learning_curve(work: Path, examination: Examination, path: Path) -> None:
    """Exact names of unseen artists' drawings against optimiser steps of the one Linear, at each checkpoint. What was
    said is asked once: its shares stay in WORK/learning_curve.json."""
    kept = work / "learning_curve.json"
    if not kept.exists():
        kept.write_text(json.dumps(_learnt(work, examination)) + "\n", encoding="utf-8")
    points = json.loads(kept.read_text(encoding="utf-8"))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for artist, title in TITLES.items():
        axes.plot([step for step, _ in points], [100 * hits[artist] for _, hits in points], "o-", label=title)
    axes.set(xlabel="optimiser steps of the one Linear", ylabel="exact name, per cent", ylim=(0, 100))
    axes.grid(alpha=0.3), axes.legend(frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _learnt(work: Path, examination: Examination) -> list[tuple[int, dict[str, float]]]:
    """Step and share of exact names of each artist, at each checkpoint of seed 0."""
    speaker, asked = CANDIDATES[f"{TRAINED}{SEED}0"].speaker(work), examination.asked["name"]
    views = [each.view for each in asked]
    features = dict(zip(views, encode(speaker.model, work / "eyes", views), strict=True))
    artists = np.array([examination.drawings[examination.views[view].drawings[0]].artist for view in views])
    points = []
    for checkpoint in tqdm(sorted((work / "run-0").glob("checkpoint-*"), key=_step), desc="learning curve"):
        with_projection(speaker.model, checkpoint)
        said = speaker.hold(asked, features).answers
        right = np.array([answers[-1] == each.truth[-1] for answers, each in zip(said, asked, strict=True)])
        points.append((_step(checkpoint), {a: float(right[artists == a].mean()) for a in TITLES}))
    return points


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def contact_sheet(results: Results, path: Path) -> None:
    """Drawings by Twemoji, drawn at random, each with what seed 0 says: right in black, wrong in red."""
    given, asked = results.said[f"{TRAINED}{SEED}0"]["name"]["answers"], results.examination.asked["name"]
    theirs = [i for i, each in enumerate(asked) if results.artists[each.view] == "twemoji"]
    number_of = min(SHEET_COLUMNS * SHEET_ROWS, len(theirs))
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL, SHEET_ROWS * (CELL + 22)), "white")
    pen, font = ImageDraw.Draw(sheet), _japanese_font(15)
    for number, place in enumerate(np.random.default_rng(0).choice(theirs, number_of, replace=False)):
        x, y = number % SHEET_COLUMNS * CELL, number // SHEET_COLUMNS * (CELL + 22)
        drawing = results.examination.drawings[results.examination.views[asked[place].view].drawings[0]]
        sheet.paste(plain_view(drawing, DRAWN), (x + (CELL - DRAWN) // 2, y))
        said = given[place][-1]
        colour = "black" if said == asked[place].truth[-1] else "#c00"
        pen.text((x + CELL / 2, y + DRAWN + 16), _fitting(name_said(said) or said), colour, font, anchor="mm")
    sheet.quantize(128).save(path, optimize=True)


def _fitting(text: str, most: int = 11) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _japanese_font(size: int) -> ImageFont.FreeTypeFont:
    """A font of the system with Japanese glyphs (Debian: fonts-noto-cjk or fonts-vlgothic).

    Raises:
        OSError: There is none.
    """
    for name in ("NotoSansCJK-Regular.ttc", "VL-Gothic-Regular.ttf", "fonts-japanese-gothic.ttf"):
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    raise OSError("The contact sheet needs a Japanese font: apt-get install fonts-noto-cjk")


def put_into_readme(table: str, path: Path = HERE / "README.md") -> None:
    """Replaces what stands between the two table marks of the page."""
    before, mark, rest = path.read_text(encoding="utf-8").partition("<!-- table -->\n")
    _, end, after = rest.partition("<!-- /table -->")
    path.write_text(f"{before}{mark}{table}{end}{after}", encoding="utf-8")


def report(work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")]) -> None:
    """Write tables, numbers, pictures and conversations."""
    torch.manual_seed(0)
    results, budget = Results(work), read_if_there(work / "budget.json")
    rows = with_published(numbers(results) | nearest(budget) | stages(work))
    table = markdown(rows, budget, read_if_there(work / "photographs.json"))
    (work / "table.md").write_text(table, encoding="utf-8")
    put_into_readme(table)
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if f"{TRAINED}{SEED}0" in results.said:
        contact_sheet(results, HERE / "contact_sheet.png")
        learning_curve(work, results.examination, HERE / "learning_curve.png")
        conversations.write(work, results.examination, work / "conversations.md")
        shutil.copy(work / "conversations.md", HERE / "conversations.md")
    print(table)
    for row in seeds_of(TRAINED, results.said):
        print(f"{row}: malformed are {results.malformed(row)[:10] or 'none'}")


if __name__ == "__main__":
    typer.run(report)

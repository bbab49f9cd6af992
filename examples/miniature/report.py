"""The table, the learning curve and the contact sheet of the miniature.

`python report.py WORK` reads WORK/answers.json and the runs -> WORK/table.md; in this folder README.md's table,
results.json, learning_curve.png and contact_sheet.png. Rows that were not examined in WORK stay as results.json has
them; the two pictures are drawn where the projection of seed 0 was trained.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import torch
import typer
from align import load, with_projection
from drawings import HERE, PICTURE_SIZE, plain_view
from examine import QUESTIONS, UNSEEN, Examination, answers, encode
from PIL import Image, ImageDraw, ImageFont
from sacrebleu.metrics import CHRF
from tqdm import tqdm

matplotlib.use("Agg")
import matplotlib.pyplot as plt

TITLES = {"emojione-v1": "EmojiOne 1 (colour)", "twemoji": "Twemoji (colour)", "openmoji": "OpenMoji (line)"}
RESAMPLES = 1000
SHEET_COLUMNS, SHEET_ROWS, CELL = 8, 5, 176
TRAINED, SEED = "trained projection", ", seed "  # how rows are called, and the rows of single seeds
# Measures of the text's health -> how the table calls them.
HEALTH = {
    "repeated_ngrams": "repeated 4-grams",
    "loops": "loops",
    "unfinished": "unfinished",
    "empty": "empty",
    "not_japanese": "not Japanese",
}
DESCRIBED_KIND = "described kind"  # the second sentence of a description, said after the name


def scores_of(given: list[str], true: list[str | None], question: str) -> np.ndarray:
    """One number a drawing: 0 or 1, chrF (0-100) for descriptions, NaN where the question is not asked."""
    if question == "description":
        chrf = CHRF()
        return np.array([chrf.sentence_score(g, [t]).score if t else np.nan for g, t in zip(given, true, strict=True)])
    return np.array([float(g == t) if t else np.nan for g, t in zip(given, true, strict=True)])


def mean_and_interval(values: np.ndarray) -> tuple[float, float, float]:
    """Mean over drawings with its 95 % bootstrap interval; `values` `(seeds, drawings)` are averaged over seeds."""
    per_drawing = values.mean(0)
    per_drawing = per_drawing[~np.isnan(per_drawing)]
    rng = np.random.default_rng(0)
    means = [per_drawing[rng.integers(len(per_drawing), size=len(per_drawing))].mean() for _ in range(RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(per_drawing.mean()), float(low), float(high)


Cells = dict[str, list[float]]
Numbers = dict[str, dict[str, dict[str, Cells]]]
"""`row -> artist -> held_out -> question -> [mean, low, high]`."""


class Results:
    """Scores of all answers: row -> question -> one number a drawing."""

    def __init__(self, work: Path):
        self.examination = Examination(work)
        self.said = json.loads((work / "answers.json").read_text(encoding="utf-8"))
        drawings = self.examination.drawings
        self.artists = np.array([d.artist for d in drawings])
        self.held_out = np.array([d.held_out for d in drawings])
        self.scores = {
            row: {q: scores_of(given, self.examination.truth(q), q) for q, given in by_question.items()}
            for row, by_question in tqdm(self.said.items(), desc="scores")
        }
        kinds = [f"。{kind}" for kind in self.examination.truth("kind")]
        for row, by_question in self.said.items():
            ends = zip(by_question["description"], kinds, strict=True)
            self.scores[row][DESCRIBED_KIND] = np.array([float(given.endswith(kind)) for given, kind in ends])

    def cell(self, rows: list[str], question: str, chosen: np.ndarray) -> tuple[float, float, float] | None:
        if any(question not in self.scores[row] for row in rows):
            return None
        return mean_and_interval(np.stack([self.scores[row][question][chosen] for row in rows]))

    def where(self, artist: str, held_out: str = "-") -> np.ndarray:
        return (self.artists == artist) & (self.held_out == held_out)


def seeds_of(title: str, rows: Iterable[str]) -> list[str]:
    """The rows whose mean a row is; none for a row that is one model's."""
    return [row for row in rows if row.startswith(f"{title}{SEED}")]


def numbers(results: Results) -> Numbers:
    """All rows that were examined, and the means over seeds before them."""
    means = dict.fromkeys(row.partition(SEED)[0] for row in results.said if SEED in row)
    rows = {title: seeds_of(title, results.said) for title in means} | {row: [row] for row in results.said}
    return {
        title: {
            artist: {
                held_out: {
                    q: [round(v, 4) for v in cell]
                    for q in (*QUESTIONS, DESCRIBED_KIND)
                    if (cell := results.cell(members, q, results.where(artist, held_out))) is not None
                }
                for held_out in ("-", "align", "never")
                if results.where(artist, held_out).any()
            }
            for artist in UNSEEN
        }
        for title, members in rows.items()
    }


def with_published(examined: Numbers, path: Path = HERE / "results.json") -> Numbers:
    """The rows of this folder, and those published before that were not examined in it; trained projections first."""
    published = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if kept := [row for row in published if row not in examined]:
        print(f"not examined in this folder, left as they are in {path.name}: {'; '.join(kept)}")
    rows = published | examined
    return {row: rows[row] for row in sorted(rows, key=lambda row: not row.startswith(TRAINED))}


def shown(cell: list[float] | None, percent: bool = True, interval: bool = True) -> str:
    if cell is None:
        return "–"
    mean, low, high = (100 * v for v in cell) if percent else cell
    return f"{mean:.0f} ({low:.0f}–{high:.0f})" if interval else f"{mean:.1f}"


def markdown(rows: Numbers, results: Results) -> str:
    """The tables as Markdown."""
    parts = (
        _table_of_rows(rows),
        _table_of_seeds(rows),
        _table_of_questions(rows),
        _table_of_held_out(rows, results),
        _table_of_stages(rows),
    )
    return "\n\n".join("\n".join(lines) for lines in parts) + "\n"


def _table_of_rows(rows: Numbers) -> list[str]:
    lines = ["| per cent exact (95 % interval); description: chrF | artist | name | category | description |"]
    lines += ["|---|---|---|---|---|"]
    for title in (row for row in rows if SEED not in row):
        seeds = len(seeds_of(title, rows))
        bold = title.replace(TRAINED, f"**{TRAINED}**") if seeds else title
        for artist in ("twemoji", "emojione-v1", "openmoji"):
            cells = rows[title][artist]["-"]
            texts = [shown(cells[q], percent=q != "description") for q in ("name", "kind", "description")]
            mean = f" (mean of {seeds} seeds)" if seeds else ""
            lines.append(f"| {bold}{mean} | {TITLES[artist]} | {' | '.join(texts)} |")
    return lines


def _table_of_seeds(rows: Numbers) -> list[str]:
    lines = [
        "| single seeds | " + " | ".join(f"{TITLES[a]}: name, category" for a in UNSEEN) + " |",
        "|---|---|---|---|",
    ]
    for row in (row for row in rows if SEED in row):
        cells = [", ".join(shown(rows[row][a]["-"][q], interval=False) for q in ("name", "kind")) for a in UNSEEN]
        lines.append(f"| {row.removeprefix(TRAINED).removeprefix(', ')} | {' | '.join(cells)} |")
    return lines


def _table_of_questions(rows: Numbers) -> list[str]:
    lines = ["| question | " + " | ".join(f"{TITLES[a]} | most frequent answer" for a in UNSEEN) + " |"]
    lines += ["|---|" + "---|---|" * len(UNSEEN)]
    asked = QUESTIONS | {DESCRIBED_KIND: f"{QUESTIONS['description']}: the category in it"}
    for question in [q for q in asked if q != "description"]:
        cells = [
            f"{shown(rows[TRAINED][a]['-'][question])} | "
            f"{shown(rows['most frequent answer'][a]['-'][question], interval=False)}"
            for a in UNSEEN
        ]
        lines.append(f"| {asked[question]} | {' | '.join(cells)} |")
    return lines


def _table_of_held_out(rows: Numbers, results: Results) -> list[str]:
    lines = ["| concepts | artist | drawings | name | category |", "|---|---|---|---|---|"]
    for held_out, title in (("align", "unseen by the projection only"), ("never", "unseen by every stage")):
        for artist in UNSEEN:
            cells = rows[TRAINED][artist].get(held_out, {})
            texts = " | ".join(shown(cells.get(q)) for q in ("name", "kind"))
            lines.append(f"| {title} | {TITLES[artist]} | {results.where(artist, held_out).sum()} | {texts} |")
    return lines


def _table_of_stages(rows: Numbers) -> list[str]:
    titles = ["descriptions, chrF", *(f"{name}, %" for name in HEALTH.values())]
    lines = ["| before and after stage 2 | artist | " + " | ".join(titles) + " |", "|---|---|" + "---|" * len(titles)]
    for title in (row for row in rows if "described" in rows[row][UNSEEN[0]]["-"]):
        for artist in ("twemoji", "emojione-v1", "openmoji"):
            cells = rows[title][artist]["-"]
            shares = [
                f"{cells[f'health, {measure}'][0]:.1f}, {cells[f'longer, {measure}'][0]:.1f}" for measure in HEALTH
            ]
            lines.append(
                f"| {title} | {TITLES[artist]} | {shown(cells['described'], percent=False)} | {' | '.join(shares)} |"
            )
    return lines


def stages(work: Path) -> Numbers:
    """The rows that `refine.py` wrote; measures of health are cells of one number, `health, loops`."""
    path = work / "stages.json"
    written = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    rows: Numbers = {}
    for title, artists in written.items():
        for artist, cells in artists.items():
            shares = {
                f"{kind}, {name}": [cells[kind][name] or 0.0] for kind in ("health", "longer") for name in HEALTH
            }
            scores = {name: cell for name, cell in cells.items() if name not in ("health", "longer")} | shares
            rounded = {name: [round(value, 4) for value in cell] for name, cell in scores.items()}
            rows.setdefault(title, {})[artist] = {"-": rounded}
    return rows


def learning_curve(work: Path, examination: Examination, path: Path) -> None:
    """Exact names of unseen artists' drawings against conversations seen by the one Linear, at each checkpoint."""
    model, processor = load(work / "assembled")
    features = encode(model, examination.maps(), examination.places)
    artists = np.array([d.artist if d.held_out == "-" else "" for d in examination.drawings])
    truth = np.array([t or "" for t in examination.truth("name")])
    points = []
    for checkpoint in tqdm(sorted((work / "run-0").glob("checkpoint-*"), key=_step), desc="learning curve"):
        said = np.array(answers(with_projection(model, checkpoint), processor, features, QUESTIONS["name"]))
        points.append((_step(checkpoint), {a: (said == truth)[artists == a].mean() for a in UNSEEN}))
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for artist in UNSEEN:
        axes.plot([step for step, _ in points], [100 * hits[artist] for _, hits in points], "o-", label=TITLES[artist])
    axes.set(xlabel="optimiser steps of the one Linear", ylabel="exact name, per cent", ylim=(0, 100))
    axes.grid(alpha=0.3), axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


def contact_sheet(results: Results, path: Path) -> None:
    """Drawings by Twemoji, drawn at random, each with what seed 0 says: right in black, wrong in red."""
    rng, given = np.random.default_rng(0), results.said[f"{TRAINED}{SEED}0"]["name"]
    drawings, truth = results.examination.drawings, results.examination.truth("name")
    places = rng.choice(np.flatnonzero(results.where("twemoji")), SHEET_COLUMNS * SHEET_ROWS, replace=False)
    sheet = Image.new("RGB", (SHEET_COLUMNS * CELL, SHEET_ROWS * (CELL + 22)), "white")
    pen, font = ImageDraw.Draw(sheet), _japanese_font(15)
    for number, place in enumerate(places):
        x, y = number % SHEET_COLUMNS * CELL, number // SHEET_COLUMNS * (CELL + 22)
        sheet.paste(plain_view(drawings[place]), (x + (CELL - PICTURE_SIZE) // 2, y))
        text = given[place].removesuffix("が写っています。")
        colour = "black" if given[place] == truth[place] else "#c00"
        pen.text((x + CELL / 2, y + PICTURE_SIZE + 16), text, colour, font, anchor="mm")
    sheet.quantize(128).save(path, optimize=True)


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
    """Write table, numbers and pictures."""
    torch.manual_seed(0)
    results = Results(work)
    rows = with_published(numbers(results) | stages(work))
    table = markdown(rows, results)
    (work / "table.md").write_text(table, encoding="utf-8")
    put_into_readme(table)
    (HERE / "results.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    if f"{TRAINED}{SEED}0" in results.said:
        contact_sheet(results, HERE / "contact_sheet.png")
        learning_curve(work, results.examination, HERE / "learning_curve.png")
    print(table)


if __name__ == "__main__":
    typer.run(report)

"""The miniature's page shows what its scripts wrote into results.json, row for row."""

import json
from pathlib import Path

PAGE = Path(__file__).parent.parent / "examples" / "miniature" / "README.md"
RESULTS = json.loads(PAGE.with_name("results.json").read_text(encoding="utf-8"))
ARTISTS = {"Twemoji (colour)": "twemoji", "OpenMoji (line)": "openmoji", "EmojiOne 1 (colour)": "emojione-v1"}
QUESTIONS = ("name", "kind", "colour", "description")


def shown_rows(start: str) -> dict[tuple[str, str], list[str]]:
    """(row, artist) -> the texts of the columns of the page's table whose head starts so."""
    table = PAGE.read_text(encoding="utf-8").partition(f"| {start}")[2].partition("\n\n")[0]
    lines = [line for line in table.splitlines()[2:] if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(row.replace("*", "").partition(" (mean")[0], ARTISTS[artist]): texts for row, artist, *texts in cells}


def text_of(cells: dict[str, list[float]], question: str) -> str:
    if question not in cells:
        return "–"
    mean, low, high = (value if question == "description" else 100 * value for value in cells[question])
    return f"{mean:.0f} ({low:.0f}–{high:.0f})"


def test_the_table_has_every_row_with_its_figures():
    expected = {}
    for row, artists in RESULTS.items():
        for artist, scores in artists.items() if ", seed " not in row else ():
            expected[row, artist] = [text_of(scores["-"], question) for question in QUESTIONS]
    assert shown_rows("per cent right") == expected and len(expected) >= 27


def test_the_goals_are_shown_with_what_was_reached():
    table = PAGE.read_text(encoding="utf-8").partition("| trained projection, mean of 3 seeds")[2].partition("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    shown = {title: dict(zip(ARTISTS.values(), cells, strict=True)) for title, _, *cells in rows}
    reached = {artist: scores["-"] for artist, scores in RESULTS["trained projection"].items()}
    for title, question in (("name", "name"), ("colour, clear ones", "colour"), ("how many (1-3)", "count")):
        assert shown[title] == {artist: text_of(cells, question) for artist, cells in reached.items()}
    assert len(shown) == 24


def test_a_mean_is_that_of_its_seeds():
    for row in (row for row in RESULTS if f"{row}, seed 0" in RESULTS):
        seeds = [RESULTS[f"{row}, seed {seed}"] for seed in range(3)]
        for artist, scores in RESULTS[row].items():
            for question, (mean, low, high) in scores["-"].items():
                of_seeds = sum(each[artist]["-"][question][0] for each in seeds) / 3
                assert abs(mean - of_seeds) < 2e-4 and low <= mean <= high


def test_the_stages_are_shown_with_their_figures():
    measures = ("repeated_ngrams", "loops", "unfinished", "empty", "not_japanese")
    expected = {}
    for row, artists in RESULTS.items():
        for artist in ARTISTS.values() if "described" in artists["twemoji"]["-"] else ():
            cells = artists[artist]["-"]
            mean, low, high = cells["described"]
            shares = [f"{cells[f'health, {name}'][0]:.1f}, {cells[f'longer, {name}'][0]:.1f}" for name in measures]
            expected[row, artist] = [f"{mean:.0f} ({low:.0f}–{high:.0f})", *shares]
    assert shown_rows("before and after stage 2") == expected and len(expected) == 6

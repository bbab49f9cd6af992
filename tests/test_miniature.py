"""The miniature's page shows what its scripts wrote into results.json, row for row."""

import json
from pathlib import Path

PAGE = Path(__file__).parent.parent / "examples" / "miniature" / "README.md"
RESULTS = json.loads(PAGE.with_name("results.json").read_text(encoding="utf-8"))
ARTISTS = {"Twemoji (colour)": "twemoji", "EmojiOne 1 (colour)": "emojione-v1", "OpenMoji (line)": "openmoji"}


def shown_rows() -> dict[tuple[str, str], list[str]]:
    """(row, artist) -> the texts of name, category and description in the page's first table."""
    table = PAGE.read_text(encoding="utf-8").partition("<!-- table -->\n")[2].partition("\n\n")[0]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {(row.replace("*", "").partition(" (mean")[0], ARTISTS[artist]): texts for row, artist, *texts in cells}


def test_the_table_has_every_row_with_its_figures():
    expected = {}
    for row, artists in RESULTS.items():
        for artist, scores in artists.items() if ", seed " not in row else ():
            cells = [[100 * v for v in scores["-"][q]] for q in ("name", "kind")] + [scores["-"]["description"]]
            expected[row, artist] = [f"{mean:.0f} ({low:.0f}–{high:.0f})" for mean, low, high in cells]
    assert shown_rows() == expected


def test_a_mean_is_that_of_its_seeds():
    for row in (row for row in RESULTS if f"{row}, seed 0" in RESULTS):
        seeds = [RESULTS[f"{row}, seed {seed}"] for seed in range(3)]
        for artist, scores in RESULTS[row].items():
            for question, (mean, low, high) in scores["-"].items():
                of_seeds = sum(each[artist]["-"][question][0] for each in seeds) / 3
                assert abs(mean - of_seeds) < 2e-4 and low <= mean <= high


def test_the_stages_are_shown_with_their_figures():
    table = PAGE.read_text(encoding="utf-8").partition("| before and after stage 2 |")[2].partition("\n\n")[0]
    shown = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    shown = [cells for cells in shown if len(cells) > 2]
    measures = ("repeated_ngrams", "loops", "unfinished", "empty", "not_japanese")
    expected = []
    for row, artists in RESULTS.items():
        for artist in ("twemoji", "emojione-v1", "openmoji") if "described" in artists["twemoji"]["-"] else ():
            cells = artists[artist]["-"]
            mean, low, high = cells["described"]
            shares = [f"{cells[f'health, {name}'][0]:.1f}, {cells[f'longer, {name}'][0]:.1f}" for name in measures]
            expected.append([row, artist, f"{mean:.0f} ({low:.0f}–{high:.0f})", *shares])
    assert [[row, ARTISTS[artist], *cells] for row, artist, *cells in shown] == expected and len(expected) == 6

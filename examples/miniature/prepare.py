"""Stage 1: collect the drawings (needs npm; nothing else here does).

`python prepare.py WORK` writes WORK/drawings.jsonl: one line a drawing with its SVG source, concept, artist, licence
and main colour, and WORK/words.txt: sentences made of the Japanese names and keywords of Unicode CLDR.
"""

import json
import re
import shutil
import subprocess
import tarfile
import unicodedata
from pathlib import Path
from typing import Annotated

import typer
from drawings import ARTISTS, Concept, Drawing, IconSet, main_colour, read_concepts, render, slug, write_drawings
from tqdm import tqdm

WORDS = ("emojibase-data", "17.0.0")  # MIT; names and keywords of Unicode CLDR 48 (Unicode-3.0)
# What is beyond the list: emoji of these groups that no concept names. Flags and letters are not things.
BEYOND = (
    "animal-", "arts-crafts", "body-parts", "book-paper", "cat-face", "clothing", "computer", "drink", "emotion",
    "event", "face-", "family", "food-", "game", "hand", "heart", "household", "light-video", "mail", "medical",
    "money", "monkey-face", "music", "office", "other-object", "other-symbol", "person", "phone", "place-", "plant-",
    "religion", "science", "sky-weather", "sport", "time", "tool", "transport-ground", "transport-sign", "warning",
    "zodiac",
)  # fmt: skip
CROWDED, OF_A_CROWD = ("face", "family", "person", "time"), 16  # no more than so many of such a subgroup


def download(package: str, version: str, folder: Path) -> Path:
    """Fetch and unpack one npm package; returns its folder. Skipped when it is there already."""
    target = folder / f"{package.rpartition('/')[2]}-{version}"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    packed = subprocess.run(
        ["npm", "pack", "--silent", f"{package}@{version}"],
        cwd=folder, check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    unpacked = folder / f"{target.name}.part"
    shutil.rmtree(unpacked, ignore_errors=True)
    with tarfile.open(folder / packed) as archive:
        archive.extractall(unpacked, filter="data")
    (unpacked / "package").rename(target)
    shutil.rmtree(unpacked)
    return target


def names_of(hexcode: str, sets: dict[str, IconSet]) -> list[str]:
    """Every name under which an artist without a code-point list may have filed an emoji."""
    known = [name for icons in sets.values() if (name := icons.code_point_name(hexcode))]
    if "-200D-" not in hexcode:  # a joined sequence is not the thing of its first character
        unicode_name = slug(unicodedata.name(chr(int(hexcode.split("-")[0], 16)), ""))
        known += [unicode_name, unicode_name.replace("-", "")]
    return list(dict.fromkeys(known))


def collect(concept: Concept, sets: dict[str, IconSet]) -> list[Drawing]:
    """All drawings of a concept by all artists; drawings that cannot be rendered are left out."""
    found = []
    for artist in ARTISTS:
        for hexcode in concept.emoji:
            for svg in sets[artist.name].find(hexcode, names_of(hexcode, sets)):
                if re.search(r"<path|<circle|<rect|<g|<ellipse", svg) and render(svg, 32).getbbox():
                    colour = main_colour(svg, artist.style)
                    found.append(
                        Drawing(concept.name, artist.name, hexcode, svg, artist.licence, colour, concept.held_out)
                    )
    return found


def things_beyond(folder: Path, concepts: list[Concept]) -> list[Concept]:
    """Emoji that are none of the concepts: every second one for training, what lies between for the table only."""
    listed = {hexcode.split("-")[0] for concept in concepts for hexcode in concept.emoji}
    groups = json.loads((folder / "meta" / "groups.json").read_text(encoding="utf-8"))["subgroups"]
    taken: dict[str, list[dict]] = {}
    for entry in json.loads((folder / "ja" / "data.json").read_text(encoding="utf-8")):
        group = groups.get(str(entry.get("subgroup")), "")
        if entry["hexcode"].split("-")[0] not in listed and group.startswith(BEYOND):
            taken.setdefault(group, []).append(entry)
    kept = [e for g, es in taken.items() for e in (es[:OF_A_CROWD] if g.startswith(CROWDED) else es)]
    return [
        Concept(entry["label"], "", "", "", ("beyond", "never")[number % 2], (entry["hexcode"],))
        for number, entry in enumerate(kept)
    ]


def word_sentences(folder: Path, things: list[Concept]) -> list[str]:
    """`りんごに関係のある言葉は、果物、赤です。` for every emoji but those of things that no stage may see."""
    unseen = {hexcode for c in things if c.held_out == "never" for hexcode in c.emoji}
    names = [c.name for c in things if c.held_out == "never" and c.kind]
    entries = json.loads((folder / "ja" / "data.json").read_text(encoding="utf-8"))
    sentences = [
        f"{entry['label']}に関係のある言葉は、{'、'.join(entry['tags'])}です。"
        for entry in entries
        if entry.get("tags") and entry["hexcode"] not in unseen
    ]
    return [s for s in sentences if not any(name in s for name in names)]


def prepare(work: Annotated[Path, typer.Argument(help="folder for everything the recipe makes")]) -> None:
    """Collect the drawings of all artists of all concepts and of things beyond them."""
    target = work / "drawings.jsonl"
    if target.exists():
        print(f"{target} is there already")
        return
    sets = {a.name: IconSet(download(a.package, a.version, work / "npm")) for a in tqdm(ARTISTS, desc="artists")}
    concepts = read_concepts()
    folder = download(*WORDS, work / "npm")
    things = [*concepts, *things_beyond(folder, concepts)]
    words = word_sentences(folder, things)
    (work / "words.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
    drawings = [d for thing in tqdm(things, desc="things") for d in collect(thing, sets)]
    part = target.with_suffix(".part")
    write_drawings(drawings, part)
    part.rename(target)
    for artist in ARTISTS:
        own = [d for d in drawings if d.artist == artist.name]
        print(f"{artist.name:28} {artist.role:8} {len(own):5} drawings of {len({d.concept for d in own})} things")


if __name__ == "__main__":
    typer.run(prepare)

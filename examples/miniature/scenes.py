"""How drawings become pictures: one thing, a thing several times, or two things side by side or above one another.

Every picture comes with what may truly be said about it, [`View`]; `vision.py` writes both.
"""

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from drawings import ARTISTS, COLOURS, PICTURE_SIZE, Drawing, colour_index, render
from PIL import Image, ImageFilter

TRAINING = frozenset(a.name for a in ARTISTS if a.role == "train")
UNSEEN = tuple(a.name for a in ARTISTS if a.role != "train")
WHITE = (255, 255, 255)
GROUNDS = dict(
    zip(
        COLOURS,
        (
            (215, 40, 40), (245, 145, 40), (250, 220, 60), (60, 160, 70), (130, 205, 240), (50, 90, 200),
            (135, 70, 170), (245, 160, 195), (130, 80, 45), (25, 25, 25), (140, 140, 140), WHITE,
        ),
        strict=True,
    )
)  # fmt: skip
# Where the middles of two or three like things lie, in fractions of the picture.
SPOTS = {
    2: (((0.28, 0.5), (0.72, 0.5)), ((0.5, 0.28), (0.5, 0.72)), ((0.3, 0.3), (0.7, 0.7))),
    3: (
        ((0.2, 0.5), (0.5, 0.5), (0.8, 0.5)), ((0.5, 0.25), (0.27, 0.72), (0.73, 0.72)),
        ((0.25, 0.25), (0.5, 0.5), (0.78, 0.78)), ((0.28, 0.27), (0.72, 0.27), (0.5, 0.73)),
    ),
}  # fmt: skip
PASSES = 3  # augmented views of every training drawing
SEVERAL, TWO = 6000, 10000  # training pictures of them
SEVERAL_ASKED, TWO_ASKED = 300, 400  # pictures of each unseen artist


@dataclass(frozen=True)
class View:
    """A picture of one or two drawings, and what is true of it.

    Attributes:
        kind: "plain" (one thing as anyone would show it), "one", "several" or "two".
        drawings: Positions in `drawings.jsonl`, the left or upper one first.
        count: How many things are to be seen, 1 to 3.
        arrangement: "side" or "above" of two things, else "".
        ground: A name of COLOURS, `None` where nobody should ask.
        coloured: For each drawing, whether the picture keeps its colours.
        training: Whether a stage may learn from it.
    """

    kind: str
    drawings: tuple[int, ...]
    training: bool
    count: int = 1
    arrangement: str = ""
    ground: str | None = "白"
    coloured: tuple[bool, ...] = (True,)


def write_views(views: list[View], path: Path) -> None:
    """One JSON object a line."""
    path.write_text("".join(json.dumps(asdict(view), ensure_ascii=False) + "\n" for view in views), encoding="utf-8")


def read_views(path: Path) -> list[View]:
    """The counterpart of [`write_views`]."""
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [View(**row | {"drawings": tuple(row["drawings"]), "coloured": tuple(row["coloured"])}) for row in rows]


def plan(drawings: list[Drawing]) -> list[View]:
    """All pictures of the recipe, not yet drawn; a pure function of the drawings.

    Stages learn from training artists' drawings of what is no stage's secret; every drawing by an unseen artist is
    asked about once by itself, and some are several or in twos. Half of the pairs are by one artist.
    """
    rng = np.random.default_rng(7)
    taught = [i for i, d in enumerate(drawings) if d.artist in TRAINING and d.held_out != "never"]
    listed = [i for i in taught if drawings[i].listed]
    views = [View("plain", (i,), True) for i in taught]
    views += [View("one", (i,), True) for _ in range(PASSES) for i in taught]
    views += [View("several", (_one_of(listed, rng),), True) for _ in range(SEVERAL)]
    of_artist = {a: [i for i in listed if drawings[i].artist == a] for a in sorted(TRAINING)}
    for number in range(TWO):
        pool = of_artist[drawings[_one_of(listed, rng)].artist] if number % 2 else listed
        views.append(View("two", _pair(pool, drawings, rng), True))
    for artist in UNSEEN:
        own = [i for i, d in enumerate(drawings) if d.artist == artist and d.listed]
        views += [View("plain", (i,), False) for i, d in enumerate(drawings) if d.artist == artist and d.asked]
        views += [View("several", (_one_of(own, rng),), False) for _ in range(SEVERAL_ASKED)]
        views += [View("two", _pair(own, drawings, rng), False) for _ in range(TWO_ASKED)]
    return views


def _one_of(pool: list[int], rng: np.random.Generator) -> int:
    return pool[rng.integers(len(pool))]


def _pair(pool: list[int], drawings: list[Drawing], rng: np.random.Generator) -> tuple[int, int]:
    first = second = _one_of(pool, rng)
    while drawings[second].concept == drawings[first].concept:
        second = _one_of(pool, rng)
    return first, second


def draw(view: View, drawings: list[Drawing], seed: int, size: int = PICTURE_SIZE) -> tuple[Image.Image, View]:
    """The picture of a view, `size` x `size` RGB, and the view with what came to be true of it."""
    rng = np.random.default_rng([11, seed])
    shown = [drawings[i] for i in view.drawings]
    plain = not view.training or view.kind == "plain"
    if view.kind in ("plain", "one"):
        picture, true = _one(shown[0], rng, size, plain)
    elif view.kind == "several":
        picture, true = _several(shown[0], rng, size, plain)
    else:
        picture, true = _two(shown, rng, size, plain)
    return picture, View(view.kind, view.drawings, view.training, **true)


def plain_view(drawing: Drawing, size: int = PICTURE_SIZE) -> Image.Image:
    """The drawing as anyone would show it: in the middle of a white page."""
    return _one(drawing, np.random.default_rng(0), size, plain=True)[0]


def _one(drawing: Drawing, rng: np.random.Generator, size: int, plain: bool) -> tuple[Image.Image, dict]:
    ground, name = _ground(rng, plain)
    canvas = Image.new("RGBA", (size, size), (*ground, 255))
    art, kept = _art(drawing, size * (0.84 if plain else rng.uniform(0.5, 0.98)), rng, plain)
    _paste(canvas, art, *((0.5, 0.5) if plain else rng.uniform(0.4, 0.6, 2)))
    return canvas.convert("RGB"), {"ground": name, "coloured": (kept,)}


def _several(drawing: Drawing, rng: np.random.Generator, size: int, plain: bool) -> tuple[Image.Image, dict]:
    count = int(rng.integers(2, 4))
    ground, name = _ground(rng, plain)
    canvas = Image.new("RGBA", (size, size), (*ground, 255))
    alike, seed, kept = rng.random() < 0.7, int(rng.integers(1 << 31)), True
    for x, y in SPOTS[count][rng.integers(len(SPOTS[count]))]:
        extent = size * {2: 0.44, 3: 0.36}[count] * rng.uniform(0.85, 1.0)
        art, own = _art(drawing, extent, np.random.default_rng(seed) if alike else rng, plain)
        _paste(canvas, art, x + rng.uniform(-0.03, 0.03), y + rng.uniform(-0.03, 0.03))
        kept = kept and own
    return canvas.convert("RGB"), {"count": count, "ground": name, "coloured": (kept,)}


def _two(shown: list[Drawing], rng: np.random.Generator, size: int, plain: bool) -> tuple[Image.Image, dict]:
    ground, name = _ground(rng, plain)
    canvas = Image.new("RGBA", (size, size), (*ground, 255))
    arrangement = "side" if rng.random() < 0.7 else "above"
    kept = []
    for middle, drawing in zip((0.26, 0.74), shown, strict=True):
        art, own = _art(drawing, size * rng.uniform(0.38, 0.5), rng, plain)
        along, across = middle + rng.uniform(-0.03, 0.03), 0.5 + rng.uniform(-0.1, 0.1)
        _paste(canvas, art, *((along, across) if arrangement == "side" else (across, along)))
        kept.append(own)
    return canvas.convert("RGB"), {"count": 2, "arrangement": arrangement, "ground": name, "coloured": tuple(kept)}


def _ground(rng: np.random.Generator, plain: bool) -> tuple[tuple[int, ...], str | None]:
    """White in half of the pictures, else some shade of a colour; no name where it passes for another colour."""
    if plain or rng.random() < 0.5:
        return WHITE, "白"
    name = COLOURS[rng.integers(len(COLOURS))]
    shade = np.clip(np.array(GROUNDS[name]) + rng.integers(-18, 19, 3), 0, 255)
    told = COLOURS[int(colour_index(shade[None] / 255.0)[0])]
    return tuple(int(level) for level in shade), name if told == name else None


def _paste(canvas: Image.Image, art: Image.Image, x: float, y: float) -> None:
    """Lays a drawing on the canvas, its middle at fractions of it; what sticks out is cut off."""
    size = canvas.width
    left, top = round(x * size - art.width / 2), round(y * size - art.height / 2)
    seen = art.crop((max(-left, 0), max(-top, 0), min(art.width, size - left), min(art.height, size - top)))
    canvas.alpha_composite(seen, (max(left, 0), max(top, 0)))


# ---------------------------------------------------------------------------------------------------------------------
# one drawing in many styles


def _art(drawing: Drawing, extent: float, rng: np.random.Generator, plain: bool) -> tuple[Image.Image, bool]:
    """A drawing in RGBA, `extent` pixels wide or high, and whether it still has its own colours."""
    if plain:
        return render(drawing.svg, round(extent)), True
    style = rng.choice(["own", "outlined", "line", "contoured", "grey"], p=[0.52, 0.17, 0.15, 0.12, 0.04])
    if style in ("outlined", "line"):
        pale = rng.uniform(0.0, 0.35) if style == "outlined" else rng.uniform(0.75, 1.0)
        svg, style_sheet = _outlined(drawing.svg, rng, pale)
        art = render(svg, round(extent), style_sheet)
    else:
        art = render(drawing.svg, round(extent))
    if style == "contoured":
        art = _contoured(art, rng)
    if style == "grey":
        art = art.convert("LA").convert("RGBA")
    if rng.random() < 0.5:
        art = art.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.4:
        art = art.rotate(rng.uniform(-15, 15), Image.Resampling.BICUBIC, expand=True)
    stretch = rng.uniform(0.87, 1.15)
    art = art.resize((max(8, round(art.width * stretch)), art.height), Image.Resampling.BICUBIC)
    return art, style not in ("line", "grey")


def _outlined(svg: str, rng: np.random.Generator, pale: float) -> tuple[str, str]:
    """Line art out of flat colours: every shape gets a dark contour, every fill moves towards white by `pale`."""
    extent = float(svg.partition('viewBox="')[2].split(" ")[2])

    def lighter(match: re.Match) -> str:
        digits = match.group(1)
        value = [int(c * 2, 16) for c in digits] if len(digits) == 3 else list(bytes.fromhex(digits))
        return "#" + "".join(f"{round(v + (255 - v) * pale):02x}" for v in value)

    width = extent * rng.uniform(0.012, 0.035)
    sheet = f"path,circle,ellipse,rect,polygon{{stroke:#111;stroke-width:{width:.3f};stroke-linejoin:round}}"
    return re.sub(r"#([0-9a-fA-F]{6}|[0-9a-fA-F]{3})\b", lighter, svg), sheet


def _contoured(picture: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A dark contour around the whole drawing, as stickers and cartoons have it."""
    grown = picture.getchannel("A").filter(ImageFilter.MaxFilter(int(rng.choice([3, 5, 7]))))
    contour = Image.new("RGBA", picture.size, (20, 20, 20, 0))
    contour.putalpha(grown)
    contour.alpha_composite(picture)
    return contour

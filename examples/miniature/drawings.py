"""Drawings by twelve emoji artists, the concepts they show, and how a drawing becomes a picture.

The artists' drawings are SVG files in the `@iconify-json/*` npm packages. Every drawing is used under its artist's own
licence; `Artist.role` says what a drawing may do here: only permissively licensed art trains the model or is shipped
with it, and three artists are never trained on.
"""

import io
import json
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parent
PICTURE_SIZE = 224  # pixels; 7 x 7 feature vectors of EfficientNet


@dataclass(frozen=True)
class Artist:
    """One npm package of drawings. `role`: "train", "develop" (hyper-parameters are chosen on it) or "report"."""

    name: str
    version: str
    licence: str
    author: str
    role: str
    style: str

    @property
    def package(self) -> str:
        return f"@iconify-json/{self.name}"


ARTISTS = (
    Artist("noto", "1.2.9", "Apache-2.0", "Google Inc, Noto Emoji", "train", "colour"),
    Artist("noto-v1", "1.2.5", "Apache-2.0", "Google Inc, Noto Emoji before 2018", "train", "colour"),
    Artist("fluent-emoji-flat", "1.2.6", "MIT", "Microsoft Corporation, Fluent Emoji", "train", "colour"),
    Artist("fluent-emoji", "1.2.7", "MIT", "Microsoft Corporation, Fluent Emoji", "train", "colour"),
    Artist("fluent-emoji-high-contrast", "1.2.6", "MIT", "Microsoft Corporation, Fluent Emoji", "train", "line"),
    Artist("fxemoji", "1.2.2", "Apache-2.0", "Mozilla, FxEmojis", "train", "colour"),
    Artist("emojione", "1.2.3", "CC-BY-4.0", "EmojiOne 2 (EmojiTwo)", "train", "colour"),
    Artist("emojione-monotone", "1.2.1", "CC-BY-4.0", "EmojiOne 2 (EmojiTwo)", "train", "line"),
    Artist("streamline-emojis", "1.2.4", "CC-BY-4.0", "Streamline", "train", "colour"),
    Artist("emojione-v1", "1.2.3", "CC-BY-SA-4.0", "EmojiOne 1", "develop", "colour"),
    Artist("twemoji", "1.2.5", "CC-BY-4.0", "Twitter, Twemoji", "report", "colour"),
    Artist("openmoji", "1.2.29", "CC-BY-SA-4.0", "OpenMoji", "report", "line"),
)


# What the sample pictures of the demo show, by file name. Chosen for their kinds, not for the answers.
SAMPLES = {
    "fire_engine": "消防車",
    "apple": "りんご",
    "penguin": "ペンギン",
    "cat": "猫",
    "umbrella": "傘",
    "guitar": "ギター",
    "carrot": "にんじん",
    "octopus": "タコ",
    "sunflower": "ひまわり",
    "rocket": "ロケット",
    "hamburger": "ハンバーガー",
    "key": "鍵",
}


@dataclass(frozen=True)
class Concept:
    """One thing that can be drawn. `held_out`: "-", or "never" where no stage may see it."""

    name: str
    english: str
    kind: str
    kind_english: str
    held_out: str
    emoji: tuple[str, ...]

    @property
    def edible(self) -> bool:
        seafood = ("カニ", "エビ", "イカ", "タコ", "牡蠣")
        return self.kind in ("果物", "野菜", "食べ物", "お菓子") or self.name in seafood

    @property
    def drinkable(self) -> bool:
        return self.kind == "飲み物"


@dataclass
class Drawing:
    """One artist's drawing of one thing, with its SVG source and the name of its main colour ("" when unclear).

    `held_out`: "-" for a concept of the list, "beyond" for a thing beyond it from which stages learn that there are
    such things, "never" for one that no stage sees.
    """

    concept: str
    artist: str
    emoji: str
    svg: str
    licence: str
    colour: str = ""
    held_out: str = "-"

    @property
    def listed(self) -> bool:
        return self.held_out == "-"

    @property
    def asked(self) -> bool:
        """Whether unseen artists' drawings of it are asked about."""
        return self.held_out != "beyond"


def read_concepts(path: Path = HERE / "concepts.tsv") -> list[Concept]:
    """The stated concepts, in file order."""
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return [Concept(*row[:5], emoji=tuple(row[5].split(" "))) for row in rows]


def listed_concepts() -> list[Concept]:
    """The concepts that stages may see, in file order."""
    return [concept for concept in read_concepts() if concept.held_out == "-"]


def read_drawings(path: Path) -> list[Drawing]:
    """The data set that `prepare.py` wrote, one JSON object a line."""
    with path.open(encoding="utf-8") as lines:
        return [Drawing(**json.loads(line)) for line in lines]


def write_drawings(drawings: list[Drawing], path: Path) -> None:
    """The counterpart of `read_drawings`."""
    path.write_text("".join(json.dumps(asdict(d), ensure_ascii=False) + "\n" for d in drawings), encoding="utf-8")


# ---------------------------------------------------------------------------------------------------------------------
# finding a drawing in an icon set


def slug(text: str) -> str:
    """`Christmas tree` -> `christmas-tree`, as the icon sets name their files."""
    ascii_text = unicodedata.normalize("NFKD", text.lower()).encode("ascii", "ignore").decode().replace("'", "")
    return re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")


class IconSet:
    """The unpacked icon set of one artist."""

    def __init__(self, folder: Path):
        data = json.loads((folder / "icons.json").read_text(encoding="utf-8"))
        chars = folder / "chars.json"
        self.by_code_point = json.loads(chars.read_text(encoding="utf-8")) if chars.exists() else {}
        self.icons, self.aliases = data["icons"], data.get("aliases", {})
        self.size = (data.get("width", 16), data.get("height", 16))

    def code_point_name(self, hexcode: str) -> str | None:
        key = hexcode.lower()
        return self.by_code_point.get(key) or self.by_code_point.get(key.replace("-fe0f", ""))

    def find(self, hexcode: str, names: list[str]) -> list[str]:
        """SVG sources of the drawings of one emoji (an artist may have drawn it twice: `name-1`, `name-2`)."""
        for name in [self.code_point_name(hexcode), *names]:
            if name:
                found = [n for n in (name, f"{name}-1", f"{name}-2") if n in self.icons or n in self.aliases]
                if found:
                    return [self.svg(n) for n in found]
        return []

    def svg(self, name: str) -> str:
        icon = self.icons[name if name in self.icons else self.aliases[name]["parent"]]
        width, height = icon.get("width", self.size[0]), icon.get("height", self.size[1])
        left, top = icon.get("left", 0), icon.get("top", 0)
        body = icon["body"].replace("currentColor", "#1a1a1a")
        return f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="{left} {top} {width} {height}">{body}</svg>'


# ---------------------------------------------------------------------------------------------------------------------
# from SVG to a picture


def render(svg: str, size: int, style_sheet: str | None = None) -> Image.Image:
    """RGBA picture of `size` x `size` pixels at most, transparent where nothing is drawn."""
    import resvg_py  # whoever only reads what was drawn does without

    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, style_sheet=style_sheet, skip_system_fonts=True)
    picture = Image.open(io.BytesIO(png)).convert("RGBA")
    if picture.height > size:
        picture = picture.resize((max(1, picture.width * size // picture.height), size), Image.Resampling.BICUBIC)
    return picture


# ---------------------------------------------------------------------------------------------------------------------
# the main colour of a drawing

COLOURS = ("赤", "オレンジ色", "黄色", "緑", "水色", "青", "紫", "ピンク", "茶色", "黒", "灰色", "白")
COLOURS_ENGLISH = (
    "red",
    "orange",
    "yellow",
    "green",
    "light blue",
    "blue",
    "purple",
    "pink",
    "brown",
    "black",
    "grey",
    "white",
)


def colour_index(rgb: np.ndarray) -> np.ndarray:
    """Index into COLOURS of each of (n, 3) pixels, values 0..1, by hue, saturation and value."""
    high, low = rgb.max(1), rgb.min(1)
    chroma, value = high - low, high
    saturation = np.where(high > 0, chroma / np.maximum(high, 1e-6), 0)
    r, g, b = rgb.T
    safe = np.maximum(chroma, 1e-6)
    hue = np.select([high == r, high == g], [(g - b) / safe % 6, (b - r) / safe + 2], (r - g) / safe + 4) * 60
    lightness = (high + low) / 2
    warm = (hue < 48) | (hue >= 340)
    conditions = [
        value < 0.28,
        (chroma < 0.09) & (value > 0.88),
        (saturation < 0.16) & (value < 0.45),
        (saturation < 0.16),
        ((hue >= 290) & (hue < 345)) & (value > 0.6),
        ((hue >= 345) | (hue < 12)) & (lightness > 0.68),
        warm & ((value < 0.62) | ((saturation < 0.55) & (value < 0.86))) & (hue >= 12) & (hue < 48),
        (hue < 14) | (hue >= 340),
        hue < 39,
        hue < 66,
        hue < 168,
        (hue < 212) & (lightness > 0.55),
        hue < 250,
        hue < 345,
    ]
    index = [9, 11, 9, 10, 7, 7, 8, 0, 1, 2, 3, 4, 5, 6]
    return np.select(conditions, index, 0)


def main_colour(svg: str, style: str) -> str:
    """The colour that covers most of a drawing, or "" when no colour covers clearly more than the next one.

    Dark contours of line art do not count: they are the pen, not the thing.
    """
    pixels = np.asarray(render(svg, 96)).reshape(-1, 4)
    rgb = pixels[pixels[:, 3] > 200, :3] / 255.0
    if len(rgb) < 100:
        return ""
    counts = np.bincount(colour_index(rgb), minlength=len(COLOURS)).astype(float)
    if style == "line":
        counts[9] *= 0.2
    first, second = np.argsort(counts)[::-1][:2]
    share = counts[first] / counts.sum()
    return COLOURS[first] if share > 0.5 and counts[first] > 1.8 * counts[second] else ""

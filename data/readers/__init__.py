"""Data sets in their owners' layouts, read into the one schema of [`Row`]; nothing is converted beforehand."""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..pictures import PictureRoots
from ..rows import Row
from .captions import read_align, read_coco_captions
from .conversations import read_llava
from .plain import read_imagefolder, read_jsonl, read_parquet
from .visual_genome import read_visual_genome
from .webdataset import read_webdataset

READERS: dict[str, Callable[..., Iterator[Row]]] = {
    "coco-captions": read_coco_captions,
    "ja-vg-vqa": read_visual_genome,
    "webdataset": read_webdataset,
    "minigpt4-align": read_align,
    "llava": read_llava,
    "parquet": read_parquet,
    "imagefolder": read_imagefolder,
    "jsonl": read_jsonl,
}


@dataclass(frozen=True)
class Source:
    """One data set of a training run.

    Args:
        path: Its file or folder; several files that belong together may be given as a list.
        images: Folders with its pictures, looked through in order; by default the folder of `path`.
        format: A key of `READERS`; by default told from the file.
        name: Its name in the log; by default the file's.
        weight: Its share of every epoch, relative to the other sources'; by default its number of pictures.
        language: Which text a translated conversation is read from: `auto`, `value` or `jp`.
        prompts: What captions are asked with: `none` (the article), `japanese`, `minigpt4`, or a list of prompts.
        prompt_probability: How often a caption is asked with one of them, from 0 to 1.
    """

    path: str | list[str]
    images: str | list[str] | None = None
    format: str = "auto"
    name: str = ""
    weight: float | None = None
    language: str = "auto"
    prompts: str | list[str] | None = None
    prompt_probability: float | None = None

    @property
    def files(self) -> list[Path]:
        return [Path(each) for each in ([self.path] if isinstance(self.path, str) else self.path)]

    @property
    def title(self) -> str:
        return self.name or self.files[0].stem


def as_source(source: "Source | dict[str, Any] | str | os.PathLike") -> Source:
    """A source from its short forms: a path, or the mapping of a recipe.

    Raises:
        ValueError: The mapping has a key that no source has.
    """
    if isinstance(source, Source):
        return source
    if not isinstance(source, dict):
        return Source(os.fspath(source))
    known = {each.name for each in fields(Source)}
    if unknown := sorted(source.keys() - known) or ("path" not in source and ["no `path`"]):
        raise ValueError(f"A data source has {unknown}; its keys are {', '.join(sorted(known))}.")
    return Source(**source)


def read_source(source: Source) -> list[Row]:
    """All rows of a source, in the order of its files.

    Raises:
        FileNotFoundError: A file is not there.
        ValueError: A file is of no known format, or a row lacks something; the message names file and place.
    """
    rows: list[Row] = []
    for path in source.files:
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist.")
        format_ = detect(path) if source.format == "auto" else source.format
        if format_ not in READERS:
            raise ValueError(f"{format_!r} is no format; there are {', '.join(READERS)}.")
        images = [source.images] if isinstance(source.images, str) else source.images
        roots = PictureRoots(images or [path if path.is_dir() else path.parent])
        options = {"language": source.language} if format_ == "llava" else {}
        rows += READERS[format_](path, roots, source.title, **options)
    if not rows:
        raise ValueError(f"{source.path} holds no rows.")
    return rows


def detect(path: Path) -> str:
    """Format of a file or folder, told from its name and its first bytes.

    Raises:
        ValueError: It is of no known format.
    """
    if path.is_dir():
        found = [
            format_
            for format_, pattern in (
                ("imagefolder", "metadata.jsonl"),
                ("minigpt4-align", "filter_cap.json"),
                ("webdataset", "*.tar"),
                ("parquet", "*.parquet"),
            )
            if any(path.glob(pattern))
        ]
        if found:
            return found[0]
    elif path.suffix in {".tar", ".parquet"}:
        return {".tar": "webdataset", ".parquet": "parquet"}[path.suffix]
    elif path.suffix in {".json", ".jsonl"} and (format_ := _detect_json(path)):
        return format_
    raise ValueError(
        f"{path} is of no known format: state one with `format`: {', '.join(READERS)}. Known are COCO captions, "
        "ja-vg-vqa, LLaVA JSON, JSON lines, Parquet, webdataset tars and folders with metadata.jsonl."
    )


def _detect_json(path: Path) -> str | None:
    with open(path, encoding="utf-8-sig") as file:
        first = file.readline(1 << 20)
    try:
        head = json.loads(first)
    except ValueError:
        head = None
    if isinstance(head, dict) and path.suffix == ".jsonl":
        return "llava" if "conversations" in head else "jsonl"
    # Files of one JSON value name their keys within the first entries; parsing hundreds of MB is left to the reader.
    with open(path, encoding="utf-8-sig") as file:
        start = file.read(1 << 16)
    opening = start.lstrip()[:1]
    if opening == "[":
        return "ja-vg-vqa" if '"qas"' in start else "llava" if '"conversations"' in start else None
    if opening == "{":
        with open(path, encoding="utf-8-sig") as file:
            keys = json.load(file).keys()
        if "annotations" in keys:
            return "coco-captions" if "images" in keys else "minigpt4-align"
    return None

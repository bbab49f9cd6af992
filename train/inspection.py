"""`jminigpt4 data`: what is in a data set, before anything is trained on it."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tqdm import tqdm

from ..data.id_lists import read_ids, unmatched_line
from ..data.rows import BadRow, Row
from .features import BadPicture
from .packing import IGNORED
from .selection import CocoTwins, exclude, not_in
from .steps import RowEncoder


@dataclass
class Inspection:
    """What was found in a source.

    Args:
        source: Its name.
        rows, pictures: Numbers of rows and of distinct picture files.
        text_only: Rows without a picture.
        bad_rows: Rows that cannot be used.
        missing: Names of picture files that are not there.
        broken: Pictures that cannot be decoded.
        duplicate_rows: Rows that say the same of the same pictures as an earlier one.
        duplicate_pictures: Picture files with the content of another.
        overlap: Rows about pictures of the evaluation sets given, by their file.
        unmatched: Sentences about ids of those files that match no picture.
        tokens: Lengths of rows in tokens: smallest, median, 99 in 100, largest; and the answers' median.
        examples: Three rows as the model sees them.
    """

    source: str
    rows: int = 0
    pictures: int = 0
    text_only: int = 0
    bad_rows: list[BadRow] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    broken: list[BadPicture] = field(default_factory=list)
    duplicate_rows: int = 0
    duplicate_pictures: int = 0
    overlap: dict[str, int] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)
    tokens: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def lines(self) -> Iterable[str]:
        """The report, line by line."""
        yield f"{self.source}: {self.rows:,} rows about {self.pictures:,} pictures ({self.text_only:,} rows without)"
        yield f"  bad rows: {len(self.bad_rows):,}"
        yield from (f"    {bad.reason}" for bad in self.bad_rows[:5])
        yield f"  pictures missing: {len(self.missing):,}; broken: {len(self.broken):,}"
        yield from (f"    missing: {name}" for name in self.missing[:5])
        if len(self.missing) > self.pictures / 2:
            yield "    most are missing: `--images FOLDER` says where pictures lie"
        yield from (f"    broken: {bad.reason}" for bad in self.broken[:5])
        yield f"  duplicates: {self.duplicate_rows:,} rows; {self.duplicate_pictures:,} pictures of equal content"
        for name, count in self.overlap.items():
            yield f"  rows about pictures of {name}: {count:,}"
        yield from (f"  {line}" for line in self.unmatched)
        if self.tokens:
            numbers = ", ".join(f"{name} {value}" for name, value in self.tokens.items())
            yield f"  tokens a row: {numbers}"
        yield from (f"  example: {text}" for text in self.examples)


def inspect(
    rows: list[Row],
    processor: Any,
    against: Iterable[str] = (),
    coco_twins: str | None = None,
    progress: bool = True,
    bad_rows: Mapping[str, list[BadRow]] | None = None,
) -> list[Inspection]:
    """Looks at every row and every picture, source by source.

    Args:
        rows: The rows.
        processor: A [`JMiniGPT4Processor`]: decodes pictures and counts tokens.
        against: Files with image ids of evaluation sets.
        coco_twins: Visual Genome's `image_data.json`.
        progress: Whether to show a progress bar.
        bad_rows: What was left out of each source, by its name.
    """
    by_source: dict[str, list[Row]] = {}
    for row in rows:
        by_source.setdefault(row.source, []).append(row)
    twins = CocoTwins(coco_twins)
    found = [_inspect(name, each, processor, list(against), twins, progress) for name, each in by_source.items()]
    for each in found:
        each.bad_rows = (bad_rows or {}).get(each.source, [])
    return found


def _inspect(
    name: str, rows: list[Row], processor: Any, against: list[str], twins: CocoTwins, progress: bool
) -> Inspection:
    found = Inspection(name, rows=len(rows), text_only=sum(not row.pictures for row in rows))
    pictures = {picture.name: picture for row in rows for picture in row.pictures}
    found.pictures = len(pictures)
    contents: Counter[bytes] = Counter()
    for picture in tqdm(pictures.values(), desc=f"{name}: pictures", unit="picture", disable=not progress):
        try:
            content = picture.read()
        except FileNotFoundError:
            found.missing.append(picture.name)
            continue
        except OSError as error:
            found.broken.append(BadPicture(picture.name, str(error)))
            continue
        contents[hashlib.sha256(content).digest()] += 1
        try:
            processor.image_processor.to_rgb(content, picture.name)
        except ValueError as error:
            found.broken.append(BadPicture(picture.name, str(error)))
    found.duplicate_pictures = sum(contents.values()) - len(contents)
    found.duplicate_rows = len(rows) - len({(row.conversation, row.image_ids) for row in rows})
    for path in against:
        ids = read_ids(path)
        found.overlap[str(path)] = len(rows) - len(exclude(rows, ids, twins))
        if unmatched := not_in(ids, rows, twins):
            found.unmatched.append(unmatched_line(path, unmatched, ids))
    found.tokens = token_lengths(rows, processor)
    found.examples = [render(row, processor) for row in rows[:: max(1, len(rows) // 3)][:3]]
    return found


def token_lengths(rows: list[Row], processor: Any, most: int = 10_000) -> dict[str, int]:
    """Lengths in tokens of at most `most` evenly chosen rows: least, median, 99 in 100, most, and supervised ones."""
    encoder = RowEncoder(processor)
    encoded = [encoder.encode(row) for row in rows[:: max(1, len(rows) // most)]]
    lengths = sorted(len(row.input_ids) for row in encoded)
    learnt = sorted(sum(label != IGNORED for label in row.labels) for row in encoded)
    middle, high = len(lengths) // 2, min(len(lengths) - 1, len(lengths) * 99 // 100)
    return {
        "least": lengths[0],
        "median": lengths[middle],
        "99 in 100": lengths[high],
        "most": lengths[-1],
        "supervised median": learnt[middle],
    }


def render(row: Row, processor: Any) -> str:
    """A row as the model sees it, one `<ImageHere>` for each picture, and its last answer in 【】."""
    messages = row.messages()
    prompt = processor.apply_chat_template(messages[:-1], add_generation_prompt=True)
    return f"{prompt}【{row.answer}{processor.tokenizer.eos_token}】".replace("\n", "\\n")

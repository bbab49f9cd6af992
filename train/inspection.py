"""`jminigpt4 data`: what is in a data set, before anything is trained on it."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np
from tqdm import tqdm

from ..data.columns import content_keys
from ..data.id_lists import read_ids, unmatched_line
from ..data.rows import BadRow, Row
from ..data.table import Rows
from .features import BadPicture
from .groups import Grouping, distinct_pictures, group, split
from .packing import IGNORED
from .selection import CocoTwins, not_in, rows_about
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
    bad_rows: Sequence[BadRow] = ()
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
        yield from (f"    {bad.reason}" for bad in islice(self.bad_rows, 5))
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
    table: Rows,
    processor: Any,
    against: Iterable[str] = (),
    coco_twins: str | None = None,
    progress: bool = True,
) -> Inspection:
    """Looks at every row and every picture of a source.

    Args:
        table: Its rows.
        processor: A [`JMiniGPT4Processor`]: decodes pictures and counts tokens.
        against: Files with image ids of evaluation sets.
        coco_twins: Visual Genome's `image_data.json`.
        progress: Whether to show a progress bar.
    """
    twins = CocoTwins(coco_twins)
    grouping = group(table, np.empty(0, np.int64), CocoTwins())
    found = Inspection(table.source, len(table), grouping.meta["pictures"], bad_rows=table.bad)
    found.text_only = sum(int((grouping.pictures[chunk] == 0).sum()) for chunk in split(grouping, 0.0)[0].chunks())
    _look_at_pictures(grouping, processor, found, progress)
    found.duplicate_rows = len(table) - _different_rows(table)
    for path in against:
        ids = read_ids(path)
        found.overlap[str(path)] = len(rows_about(ids, table, twins))
        if unmatched := not_in(ids, [table], twins):
            found.unmatched.append(unmatched_line(path, unmatched, ids))
    found.tokens = token_lengths(table, processor)
    found.examples = [render(table[number], processor) for number in _evenly(len(table), 3)[:3]]
    return found


def _evenly(count: int, most: int) -> range:
    return range(0, count, max(1, count // most))


def _look_at_pictures(grouping: Grouping, processor: Any, found: Inspection, progress: bool):
    """Reads and decodes every picture once, and counts those of equal content."""
    contents = bytearray()  # of each picture 16 bytes
    pictures = tqdm(
        distinct_pictures([split(grouping, 0.0)[0]]),
        desc=f"{found.source}: pictures",
        total=found.pictures,
        unit="picture",
        disable=not progress,
    )
    for picture in pictures:
        try:
            content = picture.read()
        except FileNotFoundError:
            found.missing.append(picture.name)
            continue
        except OSError as error:
            found.broken.append(BadPicture(picture.name, str(error)))
            continue
        contents += hashlib.sha256(content).digest()[:16]
        try:
            processor.image_processor.to_rgb(content, picture.name)
        except ValueError as error:
            found.broken.append(BadPicture(picture.name, str(error)))
    found.duplicate_pictures = len(contents) // 16 - _different(np.frombuffer(contents, np.uint64).reshape(-1, 2))


def _different_rows(table: Rows) -> int:
    """How many rows say something else than every other, or of other pictures."""
    contents = [content_keys(batch) for _, batch in table.batches()]
    return _different(np.concatenate(contents))


def _different(keys: np.ndarray) -> int:
    """How many different keys there are, `(n, 2)`."""
    keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    return min(len(keys), 1) + int((keys[1:] != keys[:-1]).any(axis=1).sum())


def token_lengths(rows: Sequence[Row], processor: Any, most: int = 10_000) -> dict[str, int]:
    """Lengths in tokens of at most `most` evenly chosen rows: least, median, 99 in 100, most, and supervised ones."""
    encoder = RowEncoder(processor)
    encoded = [encoder.encode(rows[number]) for number in _evenly(len(rows), most)]
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

"""Parts of a data set that its owner keeps apart: what is for training, and what for validation and testing."""

import functools
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from tqdm import tqdm

# What `datasets` takes for names of splits, in the name of a file or folder.
_KEYWORDS = {"train": "train", "training": "train"}
_KEYWORDS |= dict.fromkeys(("validation", "valid", "val", "dev"), "validation")
_KEYWORDS |= dict.fromkeys(("test", "testing", "eval", "evaluation"), "test")
_NAMED = re.compile(rf"(?:^|[-._ 0-9])({'|'.join(_KEYWORDS)})(?=[-._ 0-9]|$)")


def split_of(part: Path) -> str:
    """`train`, `validation` or `test`, as the name of a file or folder tells (`train-00000-of-00002.parquet`), else
    nothing; the source of the rule is `datasets`' own, `data_files.py`."""
    found = _NAMED.search(part.name.lower())
    return _KEYWORDS[found[1]] if found else ""


def training_parts(parts: Sequence[Path]) -> list[Path]:
    """Those of the parts of a folder that are trained on: where some are called train, no validation and no test."""
    splits = [split_of(part) for part in parts]
    held = ("", "train") if "train" in splits else (*_KEYWORDS.values(), "")
    return [part for part, split in zip(parts, splits, strict=True) if split in held]


def named_parts(folder: Path) -> list[Path]:
    """What in a folder, or in its folder `data`, [`training_parts`] leaves out by its name."""
    inside = folder / "data" if (folder / "data").is_dir() else folder
    parts = sorted(inside.iterdir()) if inside.is_dir() else []
    trained = set(training_parts(parts))
    return [part for part in parts if part not in trained]


@functools.cache
def say_once(line: str):
    """Writes a line to the standard error, once a process."""
    tqdm.write(line, file=sys.stderr)

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
    """Those of the parts of a folder that are trained on: where some are called train, no validation and no test.

    What is left out is said in a line, once, with how it is read.
    """
    splits = [split_of(part) for part in parts]
    left = [part for part, split in zip(parts, splits, strict=True) if split not in ("", "train")]
    if "train" not in splits or not left:
        return list(parts)
    say_once(f"{left[0].parent}: its part `train` is read; {', '.join(part.name for part in left)} by its own path.")
    return [part for part in parts if part not in left]


def other_parts(folder: Path) -> list[Path]:
    """Parts of a folder that [`training_parts`] leaves out."""
    parts = sorted(folder.iterdir()) if folder.is_dir() else []
    splits = [split_of(part) for part in parts]
    return [part for part, split in zip(parts, splits, strict=True) if split not in ("", "train") and "train" in splits]


@functools.cache
def say_once(line: str):
    """Writes a line to the standard error, once a process."""
    tqdm.write(line, file=sys.stderr)

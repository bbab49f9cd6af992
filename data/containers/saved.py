"""What `datasets` leaves on disk by itself: folders of `save_to_disk`, and Arrow files."""

from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel

from ..arrow_files import table_rows
from ..fields import checked
from ..json_files import read_json
from ..splits import training_parts
from .registry import Entry, container

STATE, SPLITS = "state.json", "dataset_dict.json"


class SavedFile(BaseModel):
    """A file of a saved data set."""

    filename: str


class SavedState(BaseModel):
    """`state.json` of a saved data set, as far as it is read."""

    data_files: list[SavedFile]


class SavedSplits(BaseModel):
    """`dataset_dict.json` of a saved `DatasetDict`."""

    splits: list[str]


def _holds(path: Path) -> bool:
    return path.suffix == ".arrow" or (path / SPLITS).is_file() or ((path / STATE).is_file() and _has_arrow(path))


def _has_arrow(path: Path) -> bool:
    return any(path.glob("*.arrow"))


def _state_and_files(path: Path) -> list[Path]:
    """What tells which files are read, and these."""
    files = [file for file in _files(path) if file.is_file()]
    told = [folder / name for folder in {path, *(file.parent for file in files)} for name in (STATE, SPLITS)]
    return [*(file for file in sorted(told) if file.is_file()), *files]


@container("saved", "a folder of `datasets`' save_to_disk, or an Arrow file", _holds, files=_state_and_files)
def saved_rows(path: Path) -> Iterator[Entry]:
    """Rows of a `Dataset` that was saved, in the order of `state.json`, or of a `DatasetDict`: of its part `train`
    where it has one. Pictures stay in the Arrow files until they are needed.

    Raises:
        ValueError: A file is damaged, or one that `state.json` names is not there.
    """
    for file in _files(path):
        if not file.is_file():
            raise ValueError(f"{file} does not exist, but {file.parent / STATE} names it: is the folder whole?")
        for number, entry in table_rows(file):
            yield Entry(file, f"row {number}", entry.copy)


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / SPLITS).is_file():
        names = checked(SavedSplits, read_json(path / SPLITS), path / SPLITS, "beginning").splits
        return [file for part in training_parts([path / name for name in names]) for file in _files(part)]
    state = read_json(path / STATE)
    given = {"data_files": state.get("_data_files")} if isinstance(state, dict) else state
    return [path / each.filename for each in checked(SavedState, given, path / STATE, "_data_files").data_files]

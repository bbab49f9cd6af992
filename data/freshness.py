"""Whether a table of rows is still that of its files: what it was made of, and where its pictures were found."""

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .columns import VERSION
from .downloads import shard_files
from .pictures import FilePicture, PictureFolders, RemotePicture, modified
from .readers import DataSource, images_of, reader_of
from .remote import RemotePath, is_url, listed

FILES = FilePicture, RemotePicture
_PICTURE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|heic|avif)$", re.IGNORECASE)


@dataclass(frozen=True)
class Origin:
    """What a table is made of.

    Args:
        folder_name: Of all tables of a source, whatever state its files are in.
        fingerprint: Of one state of them.
    """

    folder_name: str
    fingerprint: str

    @classmethod
    def of(cls, source: DataSource) -> "Origin":
        """Of a source as its files are now.

        Raises:
            FileNotFoundError: A file or picture folder is not there.
            ValueError: A file is of no known format.
        """
        identity, state = [], []
        for path in source.files:
            reader = reader_of(source, path)
            options = {name: getattr(source, name) for name in reader.options}
            folders = [(folder, os.path.abspath(folder)) for folder in map(str, images_of(source, path))]
            # Paths as they are given stand in the rows; where they lead to from here is the other half.
            identity.append((str(path), os.path.abspath(path), folders, reader.name, options))
            # Addresses in rows are joined with what lies in the picture folders.
            joined = [file for folder, _ in folders for file in shard_files(Path(folder))]
            files = [*(reader.files(path) or _data_files(path)), *joined]
            state.append((reader.version, [_stamp(file) for file in files]))
        name = re.sub(r"[^\w.-]", "_", source.files[0].stem)[:40]
        return cls(f"{name}-{_digest(identity)}", _digest([VERSION, state]))


def _digest(value: Any) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "surrogatepass")).hexdigest()[:24]


def _data_files(path: Path) -> Iterator[Path]:
    """The file, or those of a folder that may be data: all that are not called as pictures are."""
    if not path.is_dir():
        yield path
        return
    if isinstance(path, RemotePath):
        names = sorted(name for name, (_, is_folder) in listed(str(path)).items() if not is_folder)
        yield from (path / name for name in names if not _PICTURE.search(name))
        return
    with os.scandir(path) as entries:
        names = sorted(each.name for each in entries if not _PICTURE.search(each.name) and each.is_file())
    yield from (path / name for name in names)


def _stamp(file: Path) -> tuple[str, int, int]:
    status = file.stat()
    return file.name, status.st_size, status.st_mtime_ns


def looked_into(folders: Iterable[PictureFolders]) -> dict[str, int | None]:
    """The picture folders that readers looked into, each with its time of modification before that."""
    return {folder: time for each in folders for folder, time in each.listed.items()}


def where_found(
    listed: dict[str, int | None],
    batches: Callable[[], Iterator[tuple[int, Any]]],
    missing: Iterable[list[str]],
    source: DataSource,
) -> dict[str, int | None] | None:
    """The picture folders with their times of modification as they are now, if pictures are still where they were
    found and those that were not found are still nowhere; else `None`.

    As long as no folder that was looked into has changed, nothing more is looked at. A picture that was found stays
    what it was found as while it is there, also where another of its name appears.

    Args:
        listed: The folders that were looked into, each with its time of modification.
        batches: Gives the table's batches.
        missing: Paths and names of the pictures that were not found.
        source: The source.
    """
    now = {folder: modified(folder) for folder in listed}
    changed = {folder: _names(folder) for folder, time in listed.items() if now[folder] != time}
    if not changed:
        return listed
    anew = [PictureFolders(images_of(source, path)) for path in source.files]
    nowhere = set()
    for path, *names in missing:
        nowhere.add(path)
        if any(folders.find(*names).path not in folders.missing for folders in anew):
            return None
    for path in _paths(batches):
        folder, name = os.path.split(path)
        if folder in changed and name not in changed[folder] and path not in nowhere:
            return None
    return looked_into(anew) | now


def _names(folder: str) -> set[str]:
    with suppress(OSError):
        return set(listed(folder) if is_url(folder) else os.listdir(folder))
    return set()


def _paths(batches: Callable[[], Iterator[tuple[int, Any]]]) -> Iterator[str]:
    """Paths of picture files, here and at addresses, distinct ones of each batch."""
    import pyarrow.compute as pc

    for _, batch in batches():
        pictures = batch.column("pictures").flatten()
        kinds = (pc.call_function("equal", [pictures.field("kind"), each.__name__]) for each in FILES)
        files = pc.call_function("or", list(kinds))
        yield from pc.call_function("unique", [pictures.field("path").filter(files)]).to_pylist()

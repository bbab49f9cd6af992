"""Are the pictures where the data says? Looked at before a model is loaded: a wrong folder is found in a moment."""

from collections.abc import Iterable
from dataclasses import replace
from itertools import islice
from pathlib import Path

from .pictures import FilePicture, Picture, RemotePicture, stamps
from .readers import DataSource, rows_of
from .rows import Row
from .shards import fetch, file_name, list_shards

LOOKED_FOR, OPENED = 1000, 12  # pictures of a data set
FIRST_ROWS = 200
LARGE = 50_000_000  # bytes: the first rows of a JSON file may stand at its end, and so much of it is not read twice


def too_many(bad: int, every: int, most: float) -> bool:
    """Whether more than the share `most` is bad. Below 20 a share says little; a data set that is all wrong is still
    found at once."""
    return bad > max(most * every, min(20, every / 2))


def look_at(pictures: Iterable[Picture], title: str, most: float = 0.5, every: int | None = None):
    """Looks for the files of pictures, all of up to `LOOKED_FOR`, else so many evenly chosen ones; and opens a few.

    Args:
        pictures: The pictures of a data set, or evenly chosen ones; each counts once.
        title: What the data set is called.
        most: Share of pictures that may be bad. Of a choice, only more than half of them tells something.
        every: How many the data set has, where these are chosen ones.

    Raises:
        FileNotFoundError: More are missing; the message names the first one.
        ValueError: Most of those that were opened are no pictures.
    """
    distinct = list({picture.name: picture for picture in pictures}.values())
    chosen, every = _evenly(distinct, LOOKED_FOR), max(every or 0, len(distinct))
    missing = _refuse_missing(chosen, title, every, most if len(chosen) == every else max(most, 0.5))
    opened = _evenly([picture for picture in chosen if picture.name not in missing], OPENED)
    faults = [fault for picture in opened if (fault := _fault(picture))]
    if too_many(len(faults), len(opened), max(most, 0.5)):
        raise ValueError(
            f"{len(faults):,} of {len(opened):,} pictures of {title} that were looked at cannot be read: {faults[0]}"
        )


def look_at_first_rows(source: DataSource):
    """Looks for the pictures of a source's first rows, before the others are read and any library is loaded. Bad rows
    are passed over here.

    Raises:
        FileNotFoundError: A data file, a picture folder or most of the pictures are missing.
        ValueError: A file is of no known format, or damaged as a whole.
    """
    for path in source.files:
        if path.suffix == ".json" and path.is_file() and path.stat().st_size > LARGE:
            continue
        rows: list[Row] = list(islice(rows_of(source, path, lambda bad: None), FIRST_ROWS))
        distinct = {picture.name: picture for row in rows for picture in row.pictures}
        _refuse_missing(list(distinct.values()), source.title, len(distinct), 0.5)


def first_shard(source: DataSource, folder: Path) -> DataSource:
    """The first shard of a source that streams, fetched into a folder, as a source of its own.

    Raises:
        FileNotFoundError: There is none.
        ShardLost: It cannot be fetched.
    """
    shards = list_shards(source.patterns)
    name = f"{source.title}, {file_name(shards[0])} (1 of {len(shards):,} shards)"
    return replace(source, path=str(fetch(shards[0], folder)), name=name, stream=False)


def _evenly(pictures: list[Picture], most: int) -> list[Picture]:
    return pictures[:: -(-len(pictures) // most) or 1]


def _refuse_missing(looked_for: list[Picture], title: str, every: int, most: float) -> set[str]:
    """Names of the pictures that are not there.

    Raises:
        FileNotFoundError: They are too many.
    """
    missing = [picture for picture, stamp in zip(looked_for, stamps(looked_for), strict=True) if stamp is None]
    if too_many(len(missing), len(looked_for), most):
        first = missing[0].path if isinstance(missing[0], FilePicture | RemotePicture) else missing[0].name
        looked = f"{len(looked_for):,}" + (f" looked for, of {every:,}" if every > len(looked_for) else "")
        raise FileNotFoundError(
            f"{first} does not exist: {len(missing):,} of {looked} pictures of {title} are missing. `--images FOLDER` "
            "(`images` of a data source) says where pictures lie."
        )
    return {picture.name for picture in missing}


def _fault(picture: Picture) -> str:
    from ..image_processing_jminigpt4 import open_picture

    try:
        open_picture(picture.read(), picture.name)
    except (OSError, ValueError) as error:
        return str(error)
    return ""

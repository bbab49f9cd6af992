"""Data for TRL's trainers, out of any layout that is read."""

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .pictures import FilePicture, Picture, PictureFolders
from .preferences import Preference, read_preference
from .readers import DataSource, as_source, images_of, refuse
from .row_context import RowContext, rows_in
from .rows import BadRow

if TYPE_CHECKING:
    from datasets import Dataset


def read_preferences(
    source: DataSource | dict[str, Any] | str | os.PathLike, note: Callable[[BadRow], None] = refuse
) -> Iterator[Preference]:
    """Questions with a preferred and a rejected answer; see [`read_preference`] for the layouts.

    Args:
        source: The data: a path, or the mapping of a recipe.
        note: Takes the bad rows, which are left out; by default the first one is an error.

    Raises:
        ValueError: The data holds no rows, or a row is bad; the message names file and place.
    """
    source = as_source(source)
    for path in source.files:
        at = RowContext(path, PictureFolders(images_of(source, path)), source.title)
        for each in rows_in(path, read_preference, at):
            if isinstance(each, BadRow):
                note(each)
            else:
                yield each


def preference_dataset(
    source: DataSource | dict[str, Any] | str | os.PathLike, note: Callable[[BadRow], None] = refuse
) -> "Dataset":
    """The same as a data set of TRL's DPOTrainer: columns `images`, `prompt`, `chosen` and `rejected`, the last three
    of messages with parts. Picture files stay where they are; pictures out of tables are copied.

    Raises:
        ValueError: As [`read_preferences`], or a picture of a table is missing.
    """
    from datasets import Dataset, Features, Image, List, Value

    messages = List({"role": Value("string"), "content": List({"type": Value("string"), "text": Value("string")})})
    features = Features({"images": List(Image()), **dict.fromkeys(("prompt", "chosen", "rejected"), messages)})
    return Dataset.from_list([_columns(each) for each in read_preferences(source, note)], features=features)


def _columns(preference: Preference) -> dict[str, Any]:
    *asked, chosen = preference.preferred.messages()
    rejected = preference.rejected.messages()[-1]
    pictures = [_stored(picture) for picture in preference.preferred.pictures]
    return {"images": pictures, "prompt": asked, "chosen": [chosen], "rejected": [rejected]}


def _stored(picture: Picture) -> dict[str, Any]:
    if isinstance(picture, FilePicture) and picture.offset is None:
        return {"path": picture.path, "bytes": None}
    try:
        return {"path": None, "bytes": picture.read()}
    except OSError as error:
        raise ValueError(f"{picture.name} cannot be read: {error}") from None

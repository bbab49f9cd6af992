"""Where a row comes from: how what it calls a picture becomes one, whatever holds the row."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from .containers import CONTAINERS, container_of
from .containers.registry import Entry
from .downloads import Downloads, downloads
from .encoded import EncodedTexts, is_encoded
from .fields import PictureFields
from .pictures import EncodedPicture, FilePicture, Picture, PictureFolders, TablePicture, is_address
from .rows import BadRow, Row, row_or_fault


@dataclass(slots=True)
class RowContext:
    """What the reader of a row gets beside it.

    Args:
        path: The file or folder that was given, whose name ids of pictures begin with.
        folders: Folders with pictures.
        source: Name of the data set.
        options: Further fields of [`DataSource`] that the reader takes.
        encoded: Places of the pictures that are written in the file as text.
        file, place: Where the row stands, for faults in a part of it; set anew for every row.
        downloaded: What img2dataset has put into the folders, looked for when the first row asks.
    """

    path: Path
    folders: PictureFolders
    source: str
    options: dict[str, Any] = field(default_factory=dict)
    encoded: EncodedTexts | None = None
    file: Path = Path()
    place: str = ""
    downloaded: Downloads | None = None

    def picture(self, shown: str | Picture, *others: str) -> Picture:
        """What a row shows: a picture in its container, one by its name, or one written in base64.

        Args:
            shown: The picture, or its name or `data:` address.
            others: Further names that the file may have.

        Raises:
            ValueError: It is an address that lies in none of the folders and from which img2dataset has not downloaded
                into them, or base64 in a file that is not JSON.
        """
        if not isinstance(shown, str):
            return shown
        if ":" not in shown:
            return self.folders.find(shown, *others)
        if is_encoded(shown):
            if self.encoded is None:
                raise ValueError("a picture in base64 is read from JSON only: store its bytes, or name a file.")
            return self.encoded.find(shown)
        if is_address(shown):
            return self._downloaded(shown)
        return self.folders.find(shown, *others)

    def _downloaded(self, address: str) -> Picture:
        if not self.folders.folders:  # as for lists of ids: pictures keep their names
            return FilePicture(address)
        if self.downloaded is None:
            self.downloaded = downloads(self.folders.folders)
        found = self.downloaded.find(address)
        return self.folders.find(address) if found is None else found

    def part(self, name: str, make: Callable[..., Row], *arguments: Any) -> Row | BadRow:
        """A row of several that stand in one place, or what is wrong with it; `name` says which: `question 3`."""
        return row_or_fault(self.file, f"{self.place}, {name}", make, *arguments)

    def pictures(self, fields: PictureFields, shown: Sequence[str | Picture]) -> tuple[tuple[Picture, ...], tuple]:
        """What a row shows, and the ids: those of its fields, else what names tell.

        Raises:
            ValueError: As [`RowContext.picture`], or ids and pictures differ in number.
        """
        pictures = tuple(self.picture(each, *_other_names(each)) for each in shown)
        names = [_name(*each) for each in zip(shown, pictures, strict=True)]
        return pictures, fields.ids(names, self.path)


def _name(shown: str | Picture, picture: Picture) -> str:
    """What a picture is called, for its id."""
    if isinstance(picture, TablePicture):
        return f"{Path(picture.path).stem}/{picture.row}.{picture.position or 0}"
    if isinstance(picture, EncodedPicture):
        return f"@{picture.offset}"
    return shown if isinstance(shown, str) else picture.name


OCR_VQA_ENDINGS = (".png", ".gif", ".jpeg")


def _other_names(shown: str | Picture) -> list[str]:
    """OCR-VQA's pictures are downloaded in several formats; LLaVA names them all `.jpg`."""
    if not isinstance(shown, str) or "ocr_vqa/" not in shown or not shown.endswith(".jpg"):
        return []
    return [shown.removesuffix(".jpg") + ending for ending in OCR_VQA_ENDINGS]


Made = TypeVar("Made")
ReadOne = Callable[[dict[str, Any], RowContext], Made | list[Made | BadRow]]
RowReader = ReadOne[Row]


def rows_in(path: Path, read: ReadOne[Made], at: RowContext) -> Iterator[Made | BadRow]:
    """What the reader of one row makes of the rows of a container, and the faults in the places of bad ones.

    Raises:
        ValueError: It is no container of rows.
    """
    holder = container_of(path)
    if holder is None:
        raise ValueError(
            f"{path} holds no single rows: it is none of {', '.join(each.title for each in CONTAINERS.values())}."
        )
    at = replace(at, path=holder.root(path))
    for entry in holder.entries(path):
        if entry.file is not at.file:
            in_json = entry.file.suffix in (".json", ".jsonl", ".ndjson")
            at.file, at.encoded = entry.file, EncodedTexts(entry.file) if in_json else None
        at.place = entry.place
        made = row_or_fault(entry.file, entry.place, _made, read, entry, at)
        if isinstance(made, list):
            yield from made
        else:
            yield made


def _made(read: ReadOne[Made], entry: Entry, at: RowContext) -> Made | list[Made | BadRow]:
    return read(entry.load(), at)

"""Which pictures are described."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from ..data.pictures import FilePicture, Picture
from ..data.readers import as_source, read_source, recognised

SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"}


def find_pictures(paths: Sequence[str], images: Sequence[str] = ()) -> list[tuple[Picture, str]]:
    """Pictures and their ids, each picture once, in the order of the paths; of folders by name.

    Args:
        paths: Picture files, folders of pictures, or data that training reads, whose texts are not looked at.
        images: Folders with the pictures of data.

    Raises:
        FileNotFoundError: A path is not there, or there is no picture.
        ValueError: Data is not in order.
    """
    found: dict[Picture, str] = {}
    for name in paths:
        path = Path(name)
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist.")
        for picture, image_id in _pictures(path, images):
            found.setdefault(picture, image_id)
    if not found:
        raise FileNotFoundError(
            f"There is no picture in {', '.join(paths)}: looked for {', '.join(sorted(SUFFIXES))}."
        )
    return list(found.items())


def _pictures(path: Path, images: Sequence[str]) -> Iterator[tuple[Picture, str]]:
    if path.is_file() and path.suffix.lower() in SUFFIXES:
        yield FilePicture(str(path)), path.stem
    elif recognised(path) is not None:
        for row in read_source(as_source({"path": str(path), "images": list(images) or None})):
            yield from zip(row.pictures, row.image_ids, strict=True)
    elif path.is_dir():
        for file in sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES and each.is_file()):
            yield FilePicture(str(file)), file.relative_to(path).with_suffix("").as_posix()
    else:
        raise ValueError(f"{path} is neither a picture nor data that training reads.")

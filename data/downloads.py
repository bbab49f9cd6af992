"""Pictures that img2dataset has downloaded, found by their addresses."""

import functools
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from .pictures import FilePicture, Picture, TablePicture
from .tar_samples import tar_samples

if TYPE_CHECKING:
    import numpy as np

SHARD = re.compile(r"\d{3,}")  # 00000, 00001 …, by default of five digits
METADATA = {"key", "url", "status"}
ENCODED = ("jpg", "png", "webp")  # `--encode_format`, the column of pictures in `--output_format parquet`


class Shard(NamedTuple):
    """Some thousand downloads: a tar, a folder of files, or a Parquet file.

    Args:
        path: The tar, folder or file.
        ending: Of the files of a folder, with a dot; name of the column of a Parquet file; nothing of a tar.
        digits: Of the names of the files of a folder.
    """

    path: str
    ending: str
    digits: int = 0


def shard_tables(folder: Path) -> list[Path]:
    """The Parquet files that img2dataset writes beside its shards: address, key and status of every download."""
    found = [file for file in folder.glob("*.parquet") if SHARD.fullmatch(file.stem)] if folder.is_dir() else []
    return sorted(found)


def shard_files(folder: Path) -> list[Path]:
    """All that tells what is downloaded into a folder; nothing where its first shard is not there, which is seen
    without a look at every picture of a folder."""
    first = [folder / f"{'0' * digits}.{kind}" for digits in range(3, 9) for kind in ("tar", "parquet")]
    return [*shard_tables(folder), *sorted(folder.glob("*.tar"))] if any(map(Path.is_file, first)) else []


def shard_of(table: Path) -> Shard | None:
    """Where the pictures of one of these files are; `None` for a tar, which tells everything itself.

    Raises:
        ValueError: It is not img2dataset's.
    """
    import pyarrow.parquet as pq

    try:
        columns = set(pq.read_schema(table).names)
    except (OSError, ValueError):
        raise ValueError(f"{table} cannot be read as Parquet: is it whole?") from None
    if not columns >= METADATA:
        raise ValueError(f"{table} is not img2dataset's: it lacks {', '.join(sorted(METADATA - columns))}.")
    if column := next((name for name in ENCODED if name in columns), ""):
        return Shard(str(table), column)
    folder = table.with_suffix("")
    if not folder.is_dir():
        return None
    with os.scandir(folder) as entries:
        names = (entry.name.rpartition(".") for entry in entries)
        pictures = (name for name in names if name[0].isdecimal() and name[2] in ENCODED)
        key, _, ending = next(pictures, ("", "", ENCODED[0]))
    return Shard(str(folder), f".{ending}", len(key))


def shard_rows(table: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Number and metadata of the successful downloads of one of these files, pictures left where they are."""
    import pyarrow.parquet as pq

    with pq.ParquetFile(table) as file:
        wanted = [name for name in file.schema_arrow.names if name not in ENCODED]
        first = 0
        for batch in file.iter_batches(columns=[name for name in wanted if columns is None or name in columns]):
            for number, row in enumerate(batch.to_pylist(), first):
                if row["status"] == "success":
                    yield number, row
            first += batch.num_rows


def picture_of(shard: Shard, number: int, key: int) -> Picture:
    """The picture of a download, by the number of its row and its key."""
    if shard.ending.startswith("."):
        return FilePicture(os.path.join(shard.path, f"{key:0{shard.digits}}{shard.ending}"))
    return TablePicture(shard.path, number, shard.ending)


@dataclass(frozen=True)
class Downloads:
    """The index of folders of downloads: 36 bytes a picture.

    Args:
        shards: Where the pictures are.
        digests: Of addresses, sorted.
        places: Shard, and offset and size in a tar, else number and key; a row for each digest.
    """

    shards: list[Shard]
    digests: "np.ndarray"
    places: "np.ndarray"

    def find(self, address: str) -> Picture | None:
        """The picture at an address; `None` where it was not downloaded."""
        import numpy as np

        wanted = np.array(_digest(address))
        index = int(np.searchsorted(self.digests, wanted))
        if index == len(self.digests) or self.digests[index] != wanted:
            return None
        shard, first, second = map(int, self.places[index])
        found = self.shards[shard]
        return picture_of(found, first, second) if found.ending else FilePicture(found.path, first, second)

    def __len__(self) -> int:
        return len(self.digests)


def _digest(address: str) -> bytes:
    # numpy drops zeros at the end, on both sides of every comparison.
    return hashlib.blake2b(address.encode(errors="surrogatepass"), digest_size=16).digest()


def downloads(folders: Sequence[str]) -> Downloads:
    """What img2dataset has downloaded into folders: `--output_format` webdataset, files or parquet.

    Raises:
        ValueError: A shard is damaged.
    """
    files = [file for folder in folders for file in shard_files(Path(folder))]
    return _index(tuple((str(file), os.stat(file).st_mtime_ns) for file in files))


@functools.lru_cache(maxsize=1)  # of folders that may hold millions, which several looks at the data ask for
def _index(stamps: tuple[tuple[str, int], ...]) -> Downloads:
    import numpy as np

    shards: list[Shard] = []
    digests, places = [], []
    for path, _ in stamps:
        shard = Shard(path, "") if path.endswith(".tar") else shard_of(Path(path))
        if shard is None:
            continue
        found = list(_of_tar(path) if not shard.ending else _of_table(path))
        digests.append(np.array([digest for digest, _, _ in found], dtype="S16"))
        places.append(np.array([(len(shards), *place) for _, *place in found], dtype=np.int64).reshape(-1, 3))
        shards.append(shard)
    every = np.concatenate(digests) if digests else np.zeros(0, "S16")
    where = np.concatenate(places) if places else np.zeros((0, 3), np.int64)
    order = np.argsort(every, kind="stable")
    return Downloads(shards, every[order], where[order])


def _of_tar(path: str) -> Iterator[tuple[bytes, int, int]]:
    for sample in tar_samples(Path(path)):
        address = sample.about.get("url") if isinstance(sample.about, dict) else None
        if isinstance(address, str) and sample.picture is not None:
            yield _digest(address), sample.picture.offset or 0, sample.picture.size or 0


def _of_table(path: str) -> Iterator[tuple[bytes, int, int]]:
    for number, row in shard_rows(Path(path), tuple(METADATA)):
        if isinstance(row["url"], str):
            yield _digest(row["url"]), number, int(row["key"])

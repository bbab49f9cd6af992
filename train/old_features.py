"""Features that versions before the store wrote: read where they lie, and never written any more.

features-<name>.safetensors     `features` (pictures, views, num_query_tokens, size), `digests` (pictures, 32),
                                `checksums` (pictures, views): CRC-32 of each view; the oldest files have none
stamps-<name>.json              picture -> [bytes, time of change, digest]
"""

import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from ..schema import explain
from .feature_index import parsed_header
from .store_files import Range

FEATURES, STAMPS = "features-", "stamps-"
PREFIXES = (FEATURES, STAMPS)
LONGEST_HEADER = 1 << 16
MOST_OPENED = 256  # files whose digests and checksums, 40 KB for a thousand pictures, are kept in memory
_STAMPS = TypeAdapter(dict[str, tuple[int, int, Annotated[str, Field(pattern="^[0-9a-f]{64}$")]]])


def is_old(name: str) -> bool:
    """Whether a file holds features in the old layout."""
    return name.startswith(FEATURES)


def is_stamps(name: str) -> bool:
    """Whether a file holds names and times of pictures in the old layout."""
    return name.startswith(STAMPS)


@dataclass(frozen=True, slots=True)
class _Opened:
    start: int  # of the first row
    digests: np.ndarray  # (pictures, 32), uint8
    checksums: np.ndarray | None  # (pictures, views), int64


class OldFiles:
    """The files of a folder that are in the old layout.

    Args:
        files: The files of the folder.
        shape: `(num_query_tokens, size)`.
        views: Views of each picture.
        row_bytes: Bytes of the features of a view.
    """

    def __init__(self, files: Any, shape: tuple[int, ...], views: int, row_bytes: int):
        self._files, self._shape, self._views, self._row_bytes = files, shape, views, row_bytes
        self._opened: OrderedDict[str, _Opened] = OrderedDict()
        self._unchecked: set[str] = set()

    @property
    def unchecked(self) -> int:
        """Number of files without checksums among those that were opened."""
        return len(self._unchecked)

    def keys(
        self, name: str, picture_key: Callable[[str, int, int], bytes]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What a file tells an index: digests `(n, 32)` of its rows, and keys `(n, 16)` of pictures and of the content
        of each.

        Raises:
            ValueError: It is damaged; the message says how.
        """
        none = np.empty((0, 16), np.uint8)
        if is_old(name):
            return self._open(name).digests, none, none
        try:
            stamps = _STAMPS.validate_json(self._files.read(name))
        except ValidationError as error:
            raise ValueError(f"is damaged ({explain(error, name)})") from None
        pictures = b"".join(picture_key(picture, size, time) for picture, (size, time, _) in stamps.items())
        contents = b"".join(bytes.fromhex(digest[:32]) for _, _, digest in stamps.values())
        names, whose = (np.frombuffer(each, np.uint8).reshape(-1, 16) for each in (pictures, contents))
        return np.empty((0, 32), np.uint8), names, whose

    def range(self, name: str, row: int, view: int) -> Range:
        """Where the features of a view lie.

        Raises:
            ValueError: The file is damaged.
        """
        return Range(name, self._open(name).start + (row * self._views + view) * self._row_bytes, self._row_bytes)

    def problem(self, name: str, row: int, view: int, tag: int, part: np.ndarray) -> str | None:
        """What is wrong with the bytes of a view; `None` if nothing is."""
        opened = self._open(name)
        if len(part) < self._row_bytes:
            return "is cut off"
        whose = int.from_bytes(opened.digests[row, 16:20].tobytes(), "little") if row < len(opened.digests) else -1
        wrong = opened.checksums is not None and zlib.crc32(part.data) != int(opened.checksums[row, view])
        if whose != tag or wrong:
            return f"has changed on the disk (checksum of picture {row}, view {view})"
        return None

    def _open(self, name: str) -> _Opened:
        if name not in self._opened:
            self._opened[name] = self._read(name)
            if self._opened[name].checksums is None:
                self._unchecked.add(name)
            if len(self._opened) > MOST_OPENED:
                self._opened.popitem(last=False)
        self._opened.move_to_end(name)
        return self._opened[name]

    def _read(self, name: str) -> _Opened:
        start, entries = parsed_header(self._files.read_ranges([Range(name, 0, LONGEST_HEADER)])[0].tobytes())
        try:
            pictures = entries["digests"]["shape"][0]
            expected = {"features": [pictures, self._views, *self._shape], "digests": [pictures, 32]}
            expected |= {"checksums": [pictures, self._views]} if "checksums" in entries else {}
            shapes = {kind: entries[kind]["shape"] for kind in expected}
        except (KeyError, IndexError, TypeError):
            raise ValueError("has a damaged header") from None
        if shapes != expected:
            raise ValueError(f"holds features of shape {tuple(shapes['features'])}")
        ranges = {kind: entries[kind]["data_offsets"] for kind in expected}
        last = max(end for _, end in ranges.values())
        wanted = {kind: Range(name, start + ranges[kind][0], ranges[kind][1] - ranges[kind][0]) for kind in expected}
        features = wanted.pop("features")
        asked = [*wanted.values(), Range(name, start + last - 1, 1)]
        *parts, end = self._files.read_ranges(asked)
        if len(end) != 1 or any(len(part) != each.length for part, each in zip(parts, asked, strict=False)):
            raise ValueError("is cut off")
        tensors = dict(zip(wanted, parts, strict=True))
        checksums = tensors.get("checksums")
        checksums = None if checksums is None else checksums.view("<i8").reshape(pictures, self._views)
        return _Opened(features.start, tensors["digests"].reshape(-1, 32), checksums)

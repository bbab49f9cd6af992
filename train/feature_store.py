"""The store of query features: blocks of a thousand pictures, and an index over them; no model, any number of writers.

    fingerprint.json                what the features were computed with; anything else is refused
    block-<hash>.safetensors        `rows` (pictures, views, bytes + 4), uint8: features of each view and a CRC-32;
                                    `digests` (pictures, 32): SHA-256 of each picture's content;
                                    `pictures`, `contents` (n, 16): keys of pictures as they lie on the disk, and of
                                    the content that each has, here or in another block
    index-<hash>.safetensors        both kinds of keys, sorted, for all blocks it lists; made anew when many blocks are
                                    in none, and memory-mapped by all processes of a machine
    damaged-*                       what was set aside, to be encoded anew

Every file appears complete under its name and is never written again: processes and machines write at once without
asking one another, and a killed one loses the pictures of its unfinished block. Pictures are known by the SHA-256 of
their content; one whose name, size and time of change are known is not read. The checksum of a row covers a part of
the picture's SHA-256 that the index holds too, so neither a damaged row nor a damaged index gives wrong features.
"""

import hashlib
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from ..checkpoint import DTYPES, dtype_named
from ..data.pictures import Picture, stamps
from . import old_features
from .feature_index import HEADER, Index, MappedIndex, parsed_header, safetensors_header, write_index
from .fingerprint import identity, settle, write_fingerprint
from .store_files import Range, files_of

BLOCK, INDEX = "block-", "index-"
CHECKSUM = 4  # bytes behind the features of a view
# Blocks that are in no index: each process reads their keys when it opens the store, and keeps them in memory.
SCATTERED = 16
GROWN = 1000  # so many while the store is filled: a million pictures, 56 MB of keys
ASKED_AT_ONCE = 1024


class Entry(NamedTuple):
    """A picture as it lies on the disk, and the SHA-256 of its content.

    Args:
        name, size, time: As [`Picture.name`] and [`Picture.stamp`] give them.
        digest: 32 bytes.
    """

    name: str
    size: int
    time: int
    digest: bytes


@dataclass(frozen=True, slots=True)
class Found:
    """A row of a store: its file, its number there, and the 32 bits of its picture's SHA-256 that it must bear."""

    file: str
    row: int
    tag: int


class DamagedFeatures(ValueError):
    """Features that are not what was written."""


def picture_key(name: str, size: int, time: int) -> bytes:
    """128 bits for a picture as it lies on the disk: while name, size and time stay, the content is taken to stay."""
    return hashlib.sha256(f"{name}\0{size}\0{time}".encode("utf-8", "surrogatepass")).digest()[:16]


class FeatureStore:
    """Query features of any number of pictures, in a folder or at a URL; see the module.

    Args:
        folder: The store's folder, made when it is not there; or a URL that fsspec knows (`s3://`, `gs://` …).
        fingerprint: What features depend on, from [`encoder_fingerprint`].
        shape: `(num_query_tokens, size)` of a picture's features.
        dtype: `float16`, `bfloat16` or `float32`: how features are stored.
        views: Number of views of each picture that are stored.

    Raises:
        ValueError: The folder holds features that were computed with something else; the message says what, and the
            settings that take them.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        fingerprint: dict[str, Any],
        shape: Sequence[int],
        dtype: str = "float16",
        views: int = 1,
    ):
        dtype_named(dtype)
        self.folder, self.fingerprint = os.fspath(folder), fingerprint
        self.shape, self.dtype, self.views = tuple(shape), dtype, views
        self._bytes = int(np.prod(self.shape)) * DTYPES[dtype].itemsize
        self._identity = identity(fingerprint)
        self.files = files_of(folder)
        self._older = settle(self.files, self.folder, fingerprint)
        self._old = old_features.OldFiles(self.files, self.shape, views, self._bytes)
        self._start_anew()
        self.refresh()

    def __reduce__(self):
        """For another process by its name: it maps the index itself."""
        return FeatureStore, (self.folder, self.fingerprint, self.shape, self.dtype, self.views)

    def __len__(self) -> int:
        """Number of distinct pictures, by content."""
        return self._index.count

    def __contains__(self, picture: Picture) -> bool:
        return next(self.missing([picture]), None) is None

    def missing(self, pictures: Iterable[Picture]) -> Iterator[Picture]:
        """Those of the pictures that are not in the store or have changed since, as they come; takes any number."""
        remaining = iter(pictures)
        while asked := list(islice(remaining, ASKED_AT_ONCE)):
            places, _ = self._find(asked)
            yield from (picture for picture, place in zip(asked, places.tolist(), strict=True) if place < 0)

    def has_content(self, digest: bytes) -> bool:
        """Whether features of a picture with this SHA-256 are in the store."""
        key = np.frombuffer(digest[:16], np.uint8)[None]
        return int(self._index.find(key, pictures=False)[0][0]) >= 0

    def features(self, pictures: Sequence[Picture], views: int | Sequence[int] = 0) -> torch.Tensor:
        """Features of pictures, `(n, num_query_tokens, size)`, in the store's dtype.

        Args:
            pictures: Pictures that are in the store.
            views: Which view, one for all or one for each.

        Raises:
            KeyError: A picture is not in the store, or has changed since.
            DamagedFeatures: Features have changed on the disk since they were written; their block is set aside.
        """
        result = torch.empty((len(pictures), *self.shape), dtype=DTYPES[self.dtype])
        if not len(pictures):
            return result
        rows = result.flatten(1).view(torch.uint8).numpy()
        chosen = [views] * len(pictures) if isinstance(views, int) else list(views)
        found = self._rows(pictures)
        # In the order of the disk.
        order = sorted(range(len(found)), key=lambda number: (found[number].file, found[number].row))
        ranges = [self._range(found[number], chosen[number]) for number in order]
        try:
            parts = self.files.read_ranges(ranges)
        except FileNotFoundError as error:
            raise DamagedFeatures(
                f"A file of {self.folder} has gone while it was in use ({error}): start again, and its pictures will "
                "be encoded anew."
            ) from None
        for number, part in zip(order, parts, strict=True):
            problem = self._problem(found[number], chosen[number], part)
            if problem:
                raise DamagedFeatures(self._set_aside(*self._culprit(found[number], problem)))
            rows[number] = part[: self._bytes]
        return result

    def _rows(self, pictures: Sequence[Picture]) -> list[Found]:
        places, tags = self._find(pictures)
        if (places < 0).any():
            name = pictures[int(np.flatnonzero(places < 0)[0])].name
            raise KeyError(
                f"{name} is not in the feature cache {self.folder}, or has changed since it was filled: "
                "`jminigpt4 features`, or the start of a run, encodes it."
            )
        files, rows = places >> 32, places & 0xFFFFFFFF
        return [
            Found(self._index.name(file), row, tag)
            for file, row, tag in zip(files.tolist(), rows.tolist(), tags.tolist(), strict=True)
        ]

    def _range(self, found: Found, view: int) -> Range:
        if not 0 <= view < self.views:
            raise IndexError(f"There is no view {view}: {self.folder} holds {self.views} of each picture.")
        if old_features.is_old(found.file):
            return self._old.range(found.file, found.row, view)
        length = self._bytes + CHECKSUM
        return Range(found.file, HEADER + (found.row * self.views + view) * length, length)

    def _problem(self, found: Found, view: int, part: np.ndarray) -> str | None:
        """What is wrong with the bytes of a row; `None` if nothing is."""
        if old_features.is_old(found.file):
            return self._old.problem(found.file, found.row, view, found.tag, part)
        if len(part) < self._bytes + CHECKSUM:
            return "is cut off"
        expected = int.from_bytes(part[self._bytes :].tobytes(), "little")
        if zlib.crc32(part[: self._bytes].data, found.tag) != expected:
            return f"has changed on the disk (checksum of picture {found.row}, view {view})"
        return None

    def _culprit(self, found: Found, problem: str) -> tuple[str, str]:
        """The damaged file, and what is wrong with it: the one that holds a row, or the index that says so."""
        if self._index.mapped is not None and not old_features.is_old(found.file):
            try:
                keys = self._keys(found.file)
            except ValueError as error:
                return found.file, str(error)
            digests = np.empty((0, 32), np.uint8) if keys is None else keys[0]
            tags = np.ascontiguousarray(digests[:, 16:20]).view("<u4").reshape(-1)
            if found.row >= len(tags) or tags[found.row] != found.tag:
                return self._mapped_name, f"has changed on the disk (where picture {found.row} of {found.file} lies)"
        return found.file, problem

    def _find(self, pictures: Sequence[Picture]) -> tuple[np.ndarray, np.ndarray]:
        keys = np.zeros((len(pictures), 16), np.uint8)
        there = np.ones(len(pictures), bool)
        for number, (picture, stamp) in enumerate(zip(pictures, stamps(pictures), strict=True)):
            if stamp is None:
                there[number] = False
            else:
                keys[number] = np.frombuffer(picture_key(picture.name, *stamp), np.uint8)
        places, tags = self._index.find(keys, pictures=True)
        places[~there] = -1
        return places, tags

    def write_block(self, entries: Sequence[Entry], features: torch.Tensor, known: Sequence[Entry] = ()) -> str | None:
        """Writes the features of pictures, complete or not at all; what the store has is left out.

        Any number of processes and machines write at once. Blocks of others that [`refresh`] has not taken up yet may
        hold the same pictures: then either is right.

        Args:
            entries: The pictures.
            features: Of each of them, `(n, views, num_query_tokens, size)`.
            known: Further pictures, whose content is in the store or among `entries`.

        Returns:
            Name of the new file, or `None` where there was nothing to write.

        Raises:
            ValueError: The features are not of the store's shape.
            OSError: The block cannot be written; the message names it.
        """
        if tuple(features.shape) != (len(entries), self.views, *self.shape):
            raise ValueError(
                f"Features of {len(entries)} pictures are {(len(entries), self.views, *self.shape)}, not "
                f"{tuple(features.shape)}."
            )
        first = {entry.digest: number for number, entry in reversed(list(enumerate(entries)))}
        digests = _bytes([entry.digest for entry in entries], 32)
        new = self._index.find(digests[:, :16], pictures=False)[0] < 0
        rows = [number for number in sorted(first.values()) if new[number]]
        pictures = {picture_key(*entry[:3]): entry.digest[:16] for entry in (*entries, *known)}
        keys, contents = _bytes(list(pictures), 16), _bytes(list(pictures.values()), 16)
        unknown = self._index.find(keys, pictures=True)[0] < 0
        if not rows and not unknown.any():
            return None
        chosen = features[rows].to("cpu", DTYPES[self.dtype]).contiguous()
        content = [self._sealed(chosen, digests[rows]), digests[rows], keys[unknown], contents[unknown]]
        name = f"{BLOCK}{_hash(content[0][..., self._bytes :], *content[1:])}.safetensors"
        shapes = dict(zip(("rows", "digests", "pictures", "contents"), (each.shape for each in content), strict=True))
        header = safetensors_header(
            {kind: ("U8", shape) for kind, shape in shapes.items()}, {"fingerprint": self._identity}
        )
        self.files.write(name, [header, *(np.ascontiguousarray(each).data for each in content)])
        if name not in self._taken:
            self._taken.add(name)
            self._index.add(name, *content[1:])
        return name

    def _sealed(self, features: torch.Tensor, digests: np.ndarray) -> np.ndarray:
        """Features `(n, views, num_query_tokens, size)` as bytes with their checksums, `(n, views, bytes + 4)`."""
        rows = np.empty((len(features), self.views, self._bytes + CHECKSUM), np.uint8)
        if len(features):
            rows[..., : self._bytes] = features.flatten(2).view(torch.uint8).numpy()
        tags = np.ascontiguousarray(digests[:, 16:20]).view("<u4").reshape(-1).tolist()
        for row, tag in zip(rows, tags, strict=True):
            for view in row:
                view[self._bytes :] = np.frombuffer(
                    zlib.crc32(view[: self._bytes].data, tag).to_bytes(CHECKSUM, "little"), np.uint8
                )
        return rows

    def _start_anew(self):
        self._index, self._indexed = Index(), frozenset[str]()
        self._taken: set[str] = set()
        self._foreign, self._mapped_name = 0, ""

    def refresh(self):
        """Takes up what others have written, and lets go of what is gone."""
        for _ in range(5):
            names = self.files.names()
            indexed = frozenset(name for name in names if name.startswith(INDEX))
            try:
                if indexed != self._indexed or self._lost(names):
                    self._start_anew()
                    self._map_index(indexed, names)
                break
            except FileNotFoundError:
                continue  # a newer index has just replaced one of these
        mapped = self._index.mapped
        covered = self._taken if mapped is None else self._taken | {name.decode() for name in mapped.files}
        fresh = (name for name in names if name.startswith((BLOCK, *old_features.PREFIXES)))
        for name in sorted((name for name in fresh if name not in covered), key=_features_first):
            self._take_up(name)
        if self._foreign:
            tqdm.write(
                f"{self._foreign:,} files of {self.folder} were computed with other settings than the rest, and are "
                "left alone."
            )
            self._foreign = 0

    def _lost(self, names: list[str]) -> bool:
        """Whether a file that is known is not there any more."""
        there, mapped = set(names), self._index.mapped
        lost = mapped is not None and bool((mapped.not_among(names) & ~self._index.gone[: len(mapped.files)]).any())
        return lost or any(name not in there for name in self._taken)

    def _map_index(self, indexed: Iterable[str], names: list[str]):
        """Maps the index that lists most files."""
        mapped = {}
        for name in indexed:
            try:
                each = MappedIndex(self.files.mapped(name))
            except ValueError as error:
                tqdm.write(self._set_aside(name, str(error)))
                continue
            if each.fingerprint == self._identity:
                mapped[name] = each
        self._indexed = frozenset(indexed)
        if mapped:
            self._mapped_name = max(mapped, key=lambda name: len(mapped[name].files))
            self._index = Index.over(mapped[self._mapped_name], names)

    def _take_up(self, name: str):
        """Reads the keys of a file into the index."""
        self._taken.add(name)
        try:
            if old_features.is_old(name) or old_features.is_stamps(name):
                keys = self._old.keys(name, picture_key)
            else:
                keys = self._keys(name)
            if keys is not None:
                self._index.add(name, *keys)
            else:
                self._foreign += 1
        except FileNotFoundError:
            self._taken.discard(name)
        except ValueError as error:
            self._taken.discard(name)
            tqdm.write(self._set_aside(name, str(error)))

    def _keys(self, name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """Digests, keys of pictures and of their contents in a block; `None` if it is of another fingerprint."""
        start, entries = parsed_header(self.files.read_ranges([Range(name, 0, HEADER)])[0].tobytes())
        if (entries.get("__metadata__") or {}).get("fingerprint") != self._identity:
            return None
        try:
            rows, *rest = (entries[kind] for kind in ("rows", "digests", "pictures", "contents"))
            count, listed = rows["shape"][0], rest[1]["shape"][0]
            shapes = [each["shape"] for each in (rows, *rest)]
            first, end = rest[0]["data_offsets"][0], rest[2]["data_offsets"][1]
        except (KeyError, IndexError, TypeError):
            raise ValueError("has a damaged header") from None
        expected = [[count, self.views, self._bytes + CHECKSUM], [count, 32], [listed, 16], [listed, 16]]
        if start != HEADER or shapes != expected or end - first != 32 * (count + listed):
            raise ValueError("has a damaged header")
        content = self.files.read_ranges([Range(name, start + first, end - first)])[0]
        if len(content) != end - first:
            raise ValueError("is cut off")
        ends = [32 * count, 32 * count + 16 * listed]
        digests, pictures, contents = np.split(content, ends)
        return digests.reshape(-1, 32), pictures.reshape(-1, 16), contents.reshape(-1, 16)

    def _set_aside(self, name: str, problem: str) -> str:
        """Takes a damaged file out of the store, and says so."""
        said = f"{name} of the feature cache {self.folder} {problem}"
        try:
            aside = self.files.set_aside(name)
        except OSError as error:
            return f"{said}, and cannot be set aside ({error}): name a folder that can be written as the cache."
        kept = f"it is kept as {aside}" if aside else "another process has set it aside"
        if name.startswith(INDEX):
            return f"{said}: {kept}, and made anew."
        return f"{said}: {kept}. Started again, the run encodes its pictures anew, as `jminigpt4 features` does."

    def consolidate(self):
        """Writes one index of all blocks if many are in none: a store opens at once then, whatever its size. The
        fingerprint of an older version is completed."""
        if self._older:
            write_fingerprint(self.files, self.fingerprint)
            self._older = False
        if len(self._taken) <= SCATTERED:
            return
        name = f"{INDEX}{_hash(*(self._index.name(number).encode() for number in range(len(self._index.gone))))}"
        name += ".safetensors"
        with self.files.writing(name) as path:
            write_index(self._index, path, self._identity)
        for older in self._indexed - {name}:
            self.files.remove(older)
        self.refresh()

    @property
    def has_grown(self) -> bool:
        """Whether so much was written since the index was made that the keys are many to be held in memory; as a share
        of the index, so that it is not written too often."""
        mapped = self._index.mapped
        return len(self._taken) >= max(GROWN, 0 if mapped is None else len(mapped.files) // 4)

    @property
    def unchecked(self) -> int:
        """Number of files that older versions wrote without checksums, of those that hold what was looked for."""
        return self._old.unchecked


def _features_first(name: str) -> tuple[bool, str]:
    """Old files of features before those of stamps, which name contents of the others."""
    return old_features.is_stamps(name), name


def _bytes(values: Sequence[bytes], size: int) -> np.ndarray:
    """Values of equal length as `(n, size)`, uint8."""
    return np.frombuffer(b"".join(values), np.uint8).reshape(-1, size)


def _hash(*parts: Any) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part if isinstance(part, bytes) else np.ascontiguousarray(part).data)
    return digest.hexdigest()[:32]

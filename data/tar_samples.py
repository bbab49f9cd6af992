"""Samples of webdataset's tars: files that share a key, the name up to the first dot of its last part."""

import gzip
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from shutil import copyfileobj
from typing import IO, Any, cast

from .files import open_regular
from .json_files import decode, parse_object
from .pictures import Picture, picture_at
from .remote import is_url
from .rows import BadRow, row_or_fault
from .splits import say_once

PICTURES = {"jpg", "jpeg", "png", "webp", "gif", "bmp"}
TEXT_ENDINGS = {"json", "txt"}
MAX_TEXT = 1_000_000  # bytes
COMPRESSED = (".tar.gz", ".tgz")
LOOKED_AT = 100  # members of a compressed tar, before it is unpacked


@dataclass(slots=True)
class Sample:
    """What a tar holds under one key.

    Args:
        key: The key, with the folders before it.
        picture: Where its picture is in the tar.
        about: The object of `KEY.json`.
        text: The text of `KEY.txt`.
    """

    key: str
    picture: Picture | None = None
    about: dict[str, Any] | None = None
    text: str | None = None


def tar_samples(shard: Path) -> Iterator[Sample | BadRow]:
    """The samples of one tar in the order of their first files, and what is wrong with others, which come before them.

    Only headers and texts are read; pictures stay in the tar and are read from there, in any order.

    Raises:
        ValueError: The tar is damaged or compressed.
    """
    try:
        yield from _samples(shard)
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a whole, uncompressed tar: {error}") from None


def _samples(shard: Path) -> Iterator[Sample | BadRow]:
    samples: dict[str, Sample] = {}
    bad: set[str] = set()
    with open_regular(shard) as file, tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.size < 0:
                raise ValueError(f"{shard} is not a whole tar: {member.name!r:.80} has a size below zero.")
            key, kind = _key(member)
            if not member.isfile() or kind not in PICTURES | TEXT_ENDINGS:
                continue
            if fault := _fault(member, kind):
                yield BadRow(str(shard), member.name, f"{shard}, {member.name!r:.80}: {fault}")
                continue
            sample = samples.setdefault(key, Sample(key))
            if kind in PICTURES:
                sample.picture = sample.picture or picture_at(str(shard), member.offset_data, member.size)
                continue
            content = cast(IO[bytes], tar.extractfile(member)).read()
            read = row_or_fault(shard, f"{member.name!r:.80}", parse_object if kind == "json" else decode, content)
            if isinstance(read, BadRow):
                bad.add(key)
                yield read
            elif isinstance(read, str):
                sample.text = read
            else:
                sample.about = read
    yield from (sample for key, sample in samples.items() if key not in bad)


def _key(member: tarfile.TarInfo) -> tuple[str, str]:
    """Key and ending, as the webdataset library splits a name."""
    folder, _, name = member.name.rpartition("/")
    stem, _, kind = name.partition(".")
    return f"{folder}/{stem}".lstrip("/"), kind.lower()


def _fault(member: tarfile.TarInfo, kind: str) -> str:
    if member.issparse():
        return f"a sparse file, which unpacks to {member.size:,} bytes, is not read."
    if not member.name.isprintable():  # bytes that are no UTF-8 among them
        return "its name is not UTF-8, or holds control characters."
    if kind in TEXT_ENDINGS and member.size > MAX_TEXT:
        return f"its text has {member.size:,} bytes; at most {MAX_TEXT:,} are read."
    return ""


def target_of(shard: Path) -> Path:
    """What a compressed tar is unpacked to."""
    return shard.with_name(shard.name.removesuffix(".tgz").removesuffix(".tar.gz") + ".tar")


def unpacked(shard: Path) -> Path:
    """A tar as it can be read at any place: a compressed one is unpacked beside itself, once, which a line says.

    Raises:
        ValueError: It is damaged or holds no pictures, there is no room for it, or a tar of its name is older than it.
    """
    if not shard.name.endswith(COMPRESSED):
        return shard
    if is_url(str(shard)):
        raise ValueError(f"{shard} is compressed, and no place in it can be read by itself: unpack it first.")
    target = target_of(shard)
    changed = shard.stat().st_mtime_ns
    if target.exists():
        if target.stat().st_mtime_ns >= changed:
            return target
        raise ValueError(f"{target} is older than {shard.name} beside it: remove the one that is out of date.")
    _refuse_without_pictures(shard)
    say_once(f"{shard} is compressed, and no place in it can be read by itself: it is unpacked once, to {target}.")
    part = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with gzip.open(shard) as source, open(part, "wb") as file:
            copyfileobj(source, file, 1 << 20)
        os.utime(part, ns=(changed, changed))
        part.replace(target)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{shard} is not a whole gzip file: {error}") from None
    except OSError as error:
        raise ValueError(
            f"{shard} cannot be unpacked to {target} ({error.strerror}): put `gunzip --stdout {shard.name}` where "
            "there is room, and give that tar."
        ) from None
    finally:
        part.unlink(missing_ok=True)
    return target


def _refuse_without_pictures(shard: Path):
    try:
        with tarfile.open(shard, "r|gz") as tar:
            names = [member.name for member in islice(tar, LOOKED_AT) if member.isfile()]
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise ValueError(f"{shard} is not a whole gzip file of a tar: {error}") from None
    if not any(name.lower().endswith(tuple(f".{kind}" for kind in PICTURES)) for name in names):
        held = f"{', '.join(names[:3]) or 'nothing':.200}"
        raise ValueError(f"{shard} holds {held} and no pictures: unpack it by `tar xzf`, and give the file in it.")

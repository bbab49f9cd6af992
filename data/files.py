"""Files that rows name: regular ones only, and no more of them than a picture has."""

import os
import stat
from pathlib import Path
from typing import BinaryIO

from .remote import RemotePath, read_url

MAX_PICTURE_BYTES = 200_000_000


def open_regular(path: str | Path | RemotePath) -> BinaryIO:
    """A regular file, open for reading. Never waits for the other end of a pipe. An address is opened as a
    [`RemotePath`] alone, which is made of what users name, and never as a text, which may be a row's.

    Raises:
        OSError: It is not there, cannot be opened, or is a folder, device or pipe.
    """
    if isinstance(path, RemotePath):
        return path.open_bytes()
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError:  # a NUL, or half of a surrogate pair
        raise OSError(f"{os.fspath(path)!r} cannot be the name of a file.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file.")
    return os.fdopen(descriptor, "rb")


def read_picture_file(path: str | Path, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a picture file, or `size` bytes of an archive from `offset` on.

    Raises:
        OSError: As [`open_regular`], or the picture has more than 200 MB (1e6 bytes).
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size - offset if size is None else size
        if size > MAX_PICTURE_BYTES:
            raise _too_large(path, f"{size:,}")
        file.seek(offset)
        return file.read(size)


def read_remote_picture(url: str, offset: int | None = None, size: int | None = None) -> bytes:
    """The bytes of a picture at an address, or `size` bytes of an archive there from `offset` on.

    Raises:
        OSError: It cannot be read, is shorter than `offset + size`, or has more than 200 MB (1e6 bytes).
    """
    if size is not None:
        if size > MAX_PICTURE_BYTES:
            raise _too_large(url, f"{size:,}")
        return read_url(url, offset or 0, size, whole=False)
    content = read_url(url, 0, MAX_PICTURE_BYTES + 1, whole=True)  # the last byte tells that there are too many
    if len(content) > MAX_PICTURE_BYTES:
        raise _too_large(url, "more")
    return content


def _too_large(path: str | os.PathLike, size: str) -> OSError:
    return OSError(f"The picture {path} has {size} bytes; at most {MAX_PICTURE_BYTES:,} are read.")

"""Files that rows name: regular ones only, and no more of them than a picture has."""

import os
import stat
from typing import BinaryIO

MAX_PICTURE_BYTES = 200_000_000


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """A regular file, open for reading. Never waits for the other end of a pipe.

    Raises:
        OSError: It is not there, cannot be opened, or is a folder, device or pipe.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError:  # a NUL, or half of a surrogate pair
        raise OSError(f"{os.fspath(path)!r} cannot be the name of a file.") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path} is no regular file.")
    return os.fdopen(descriptor, "rb")


def read_picture_file(path: str | os.PathLike, offset: int = 0, size: int | None = None) -> bytes:
    """The bytes of a picture file, or `size` bytes of an archive from `offset` on.

    Raises:
        OSError: As [`open_regular`], or the picture has more than 200 MB (1e6 bytes).
    """
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size - offset if size is None else size
        if size > MAX_PICTURE_BYTES:
            raise OSError(f"The picture {path} has {size:,} bytes; at most {MAX_PICTURE_BYTES:,} are read.")
        file.seek(offset)
        return file.read(size)

"""Cells of Parquet and Arrow files on disk, read one row group at a time: nothing but the last few stays in memory."""

import os
from bisect import bisect_right
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

from .remote import RemotePath, is_url

FILES, ROW_GROUPS = 16, 4  # that a process keeps, of each kind


def cell(path: str, stamp: tuple[int, int], row: int, column: str) -> Any:
    """The `pyarrow.Scalar` in a row and column of a table file.

    Args:
        path: A Parquet file, or an Arrow file or stream as `datasets` writes it.
        stamp: Size and time of modification: what is kept of another state of the file is not taken.
        row: Number of the row, from 0 on.
        column: Its name.

    Raises:
        OSError: The file cannot be read as a table, or has no such cell.
    """
    try:
        starts = _opened(path, stamp, _process(path))[1]
        if not 0 <= row < starts[-1]:
            raise OSError(f"{path} has no row {row}: it has {starts[-1]:,}.")
        group = bisect_right(starts, row) - 1
        return _row_group(path, stamp, group, column)[row - starts[group]]
    except (KeyError, ValueError) as error:  # of pyarrow, whose words name no file
        raise OSError(f"{path} cannot be read as a table ({type(error).__name__}): is it whole?") from None


def parquet_file(path: str | Path | RemotePath) -> Any:
    """A `pyarrow.parquet.ParquetFile`, of which what is asked for is read, on this machine or at an address.

    Raises:
        OSError: It is not there.
        ValueError: It is no Parquet.
    """
    import pyarrow.parquet as pq

    return pq.ParquetFile(path.open_bytes() if isinstance(path, RemotePath) else path)


def arrow_file(opened: Any) -> Any:
    """A reader of an open Arrow file: of the stream that `datasets` writes, or of the file format.

    Raises:
        ValueError: It is neither.
    """
    import pyarrow as pa

    try:
        return pa.ipc.open_stream(opened)
    except pa.ArrowInvalid:
        opened.seek(0)
        return pa.ipc.open_file(opened)


def _process(path: str) -> int:
    """For what is kept of a file: connections to object storage are of no use to forked processes."""
    return os.getpid() if is_url(path) else 0


@lru_cache(maxsize=FILES)
def _opened(path: str, stamp: tuple[int, int], process: int) -> tuple[Any, list[int]]:
    """A table file, and the row numbers at which its row groups begin and it ends."""
    import pyarrow as pa

    if path.endswith(".arrow"):
        table = arrow_file(pa.memory_map(path)).read_all()
        return table, [0, table.num_rows]
    file = parquet_file(RemotePath(path) if is_url(path) else path)
    sizes = (file.metadata.row_group(number).num_rows for number in range(file.num_row_groups))
    return file, list(accumulate(sizes, initial=0))


@lru_cache(maxsize=ROW_GROUPS)
def _row_group(path: str, stamp: tuple[int, int], number: int, column: str) -> Any:
    table, _ = _opened(path, stamp, _process(path))
    if path.endswith(".arrow"):
        return table.column(column)
    return table.read_row_group(number, columns=[column]).column(column)

"""Shards: a data set in many files, on this machine or on a server, named by one pattern; and one of them fetched."""

import os
import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..extras import install_command

TRIES = 6  # of fetching a shard, with waits of 1, 2, 4, 8 and 16 seconds between them
FIRST_WAIT = 1.0  # seconds
STALLED = 60  # seconds without a byte from a web server
MOST_SHARDS = 1_000_000
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
# `**.parquet`, as `datasets` writes it, is any depth of folders to fsspec only as a part of its own.
_ANY_DEPTH = re.compile(r"(?<![^/])\*\*(?=[^/])")


def is_remote(name: str) -> bool:
    """Whether a name is an address, such as `s3://bucket/00000.tar`, and no path of this machine."""
    scheme, separator, _ = name.partition("://")
    return bool(separator) and scheme.isalnum() and scheme != "file"


def expand_braces(pattern: str) -> Iterator[str]:
    """The names that a pattern stands for: `{00000..00099}` counts, with its zeros, and `{a,b}` lists, as a shell and
    webdataset have it.

    Raises:
        ValueError: A brace holds neither, or counts backwards; or there are more than a million names.
    """
    if (found := _BRACES.search(pattern)) is None:
        yield pattern
        return
    inside = found[1]
    if counted := _RANGE.fullmatch(inside):
        first, last = counted[1], counted[2]
        if not int(first) <= int(last) < int(first) + MOST_SHARDS:
            raise ValueError(f"{{{inside}}} in {pattern} counts from {first} to {last}: up, and to a million at most.")
        choices: Iterable[str] = (f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1))
    elif "," in inside:
        choices = inside.split(",")
    else:
        raise ValueError(f"{{{inside}}} in {pattern} is neither a range, {{000..099}}, nor a list, {{a,b}}.")
    for choice in choices:
        yield from expand_braces(f"{pattern[: found.start()]}{choice}{pattern[found.end() :]}")


def list_shards(patterns: Iterable[str]) -> list[str]:
    """The shards that patterns name, each once, sorted: the same list on every machine.

    Args:
        patterns: Paths or addresses of whatever fsspec opens (`hf://datasets/…`, `s3://…`, `https://…`), with braces
            (see [`expand_braces`]), and with `*`, `**` and `[…]` where the server can list its files.

    Raises:
        FileNotFoundError: A pattern matches nothing.
        ImportError: The package that opens such an address is not installed.
        ValueError: A pattern is wrong, or names a folder.
    """
    shards: set[str] = set()
    for pattern in patterns:
        for name in expand_braces(pattern):
            shards.update(_matches(name) if _is_glob(name) else [_one(name)])
            if len(shards) > MOST_SHARDS:
                raise ValueError(f"{pattern} names more than {MOST_SHARDS:,} shards.")
    return sorted(shards)


def _is_glob(name: str) -> bool:
    return "*" in name or ("[" in name and urlsplit(name).scheme not in {"http", "https"})  # where it is IPv6


def _one(name: str) -> str:
    if not is_remote(name):
        name = os.path.abspath(os.path.expanduser(name.removeprefix("file://")))
        if os.path.isdir(name):
            raise ValueError(f"{name} is a folder: name its shards by a pattern, such as {name}/*.tar.")
        if not os.path.isfile(name):
            raise FileNotFoundError(f"The shard {name} does not exist.")
    elif not file_name(name) or "." not in file_name(name):
        raise ValueError(f"{name} names no file: name the shards by a pattern, such as {name.rstrip('/')}/**.parquet.")
    return name


def _matches(pattern: str) -> list[str]:
    if urlsplit(pattern).scheme in {"http", "https"}:
        raise ValueError(f"{pattern}: a web server cannot be asked for its files. Count them: {{00000..00099}}.")
    files, path = _opened(os.path.expanduser(_ANY_DEPTH.sub("**/*", pattern)))
    try:
        found = [name for name, entry in files.glob(path, detail=True).items() if entry.get("type") == "file"]
    except ValueError as error:
        raise ValueError(f"{pattern} is no pattern of names: {error}.") from None
    if not found:
        raise FileNotFoundError(f"{pattern} matches no file.")
    return [str(files.unstrip_protocol(name)) if is_remote(pattern) else name for name in found]


def _opened(name: str) -> tuple[Any, str]:
    """The file system of an address, and the path in it."""
    import fsspec

    options: dict[str, Any] = {}
    try:
        if urlsplit(name).scheme in {"http", "https"}:
            import aiohttp

            # Left to itself, aiohttp gives up on what takes more than five minutes, however well it comes in.
            patience = aiohttp.ClientTimeout(total=None, sock_connect=STALLED, sock_read=STALLED)
            options = {"client_kwargs": {"timeout": patience}}
        return fsspec.core.url_to_fs(name, **options)
    except ImportError as error:
        raise ImportError(f"{name} needs a package that is not here ({error}): {install_command('scale')}.") from None
    except ValueError as error:  # no such protocol
        raise ValueError(f"{name} cannot be opened: {error}.") from None


def file_name(shard: str) -> str:
    """The last part of a shard's path."""
    path = urlsplit(shard).path if is_remote(shard) else shard
    return path.rpartition("/")[2]


def size_of(shard: str) -> int | None:
    """Bytes of a shard; `None` where the server does not say or is not to be reached: fetching it finds out."""
    files, path = _opened(shard)
    try:
        return files.info(path).get("size")
    except Exception:  # of whatever library speaks to the server
        return None


class ShardLost(OSError):
    """A shard that cannot be had; its text is one sentence that names it."""


def fetch(shard: str, folder: Path, ended: threading.Event | None = None) -> Path:
    """A shard as a file of this machine: where it lies, or fetched into `folder`, whole or not at all.

    What passes by (a server that is overloaded, a connection that breaks, a file that ends too soon) is tried
    `TRIES` times.

    Args:
        shard: From [`list_shards`].
        folder: An existing folder.
        ended: Set by another thread to give up.

    Raises:
        InterruptedError: `ended` was set.
        ShardLost: It is not there, may not be read, or came in whole at no try.
    """
    from tenacity import Retrying, retry_if_not_exception_type, sleep_using_event, stop_after_attempt, wait_exponential

    ended = ended or threading.Event()
    if not is_remote(shard):
        if not os.path.isfile(shard):
            raise ShardLost(f"The shard {shard} does not exist any more.")
        return Path(shard)
    path = folder / file_name(shard)
    tries = Retrying(
        stop=stop_after_attempt(TRIES),
        wait=wait_exponential(FIRST_WAIT, max=30),
        sleep=sleep_using_event(ended),
        retry=retry_if_not_exception_type((FileNotFoundError, PermissionError, InterruptedError, ImportError)),
        reraise=True,
    )
    try:
        tries(_fetch_once, shard, path, ended)
    except (InterruptedError, ImportError):
        raise
    except Exception as error:  # of whatever library speaks to the server
        reason = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, FileNotFoundError):
            reason = "it is not there"
        raise ShardLost(f"The shard {shard} cannot be fetched: {reason}.") from None
    return path


def _fetch_once(shard: str, path: Path, ended: threading.Event):
    from fsspec import Callback

    class Watched(Callback):
        """Ends a transfer between two of its pieces."""

        def relative_update(self, inc: int = 1):
            if ended.is_set():
                raise InterruptedError

    if ended.is_set():
        raise InterruptedError
    files, inside = _opened(shard)
    expected = size_of(shard)
    temporary = path.with_name(f".{path.name}.part")
    try:
        files.get_file(inside, str(temporary), callback=Watched())
        size = temporary.stat().st_size
        if expected is not None and size != expected:
            raise OSError(f"{size:,} of its {expected:,} bytes came in")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)

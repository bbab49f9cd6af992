"""The benchmarks: what a user asks for, found on this machine or on the Hub, and read."""

import importlib
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from ...data.id_lists import read_ids, unmatched_line
from ...data.pictures import PictureFolders
from ..items import Item
from .registry import BENCHMARKS, Benchmark, Request

__all__ = ["BENCHMARKS", "Benchmark", "Request", "local_path", "parse_request", "read_items"]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")


def parse_request(text: str, images: Sequence[str] = (), prompt: str = "", only: Path | None = None) -> Request:
    """`NAME[:PROTOCOL][=PATH]`, or the path of a JSON-lines file of one's own.

    Raises:
        ValueError: There is no such benchmark or protocol, or a path is needed.
        FileNotFoundError: The path does not exist.
    """
    head, separator, tail = text.partition("=")
    if not separator and (Path(text).suffix == ".jsonl" or Path(text).is_file()):
        head, tail = next(name for name, each in BENCHMARKS.items() if each.dataset is None), text
    name, _, protocol = head.partition(":")
    if name not in BENCHMARKS:
        raise ValueError(
            f"There is no benchmark {name!r}: choose one of {', '.join(BENCHMARKS)}, as NAME[:PROTOCOL][=PATH], or "
            "name a .jsonl file."
        )
    chosen = BENCHMARKS[name]
    protocol = protocol or chosen.protocols[0]
    if protocol not in chosen.protocols:
        known = ", ".join(chosen.protocols) if chosen.protocols != ("",) else "none"
        raise ValueError(f"{name} has no protocol {protocol!r}; it has {known}.")
    if not tail and chosen.hub is None:
        raise ValueError(f"{name} is not read from the Hub: name its file, --benchmark {head}=PATH.")
    path = Path(tail) if tail else None
    if path is not None and not path.exists() and not (chosen.hub and _names_a_repository(tail)):
        raise FileNotFoundError(f"{path} does not exist.")
    return Request(name, protocol, path, tuple(images), prompt, only)


def _names_a_repository(text: str) -> bool:
    """Whether a path that is not there may be `user/name` on the Hub: none with the ending of a file, or below a
    folder that is there."""
    owner, _, name = text.partition("/")
    return (
        bool(owner and name)
        and "/" not in name
        and not text.startswith((".", "~"))
        and not (Path(owner).exists() or Path(name).suffix in {".json", ".jsonl", ".parquet", ".tar"})
    )


def local_path(request: Request) -> Path:
    """Where the benchmark lies on this machine; downloaded from the Hub where that is asked for.

    Raises:
        OSError: The Hub cannot be reached.
    """
    if request.path is not None and request.path.exists():
        return request.path
    from huggingface_hub import snapshot_download

    repository = request.path.as_posix() if request.path is not None else request.benchmark.hub
    patterns = ["*.parquet", "*.jsonl", "*.json", "images/*"]
    return Path(snapshot_download(str(repository), repo_type="dataset", allow_patterns=patterns))


def read_items(request: Request, limit: int | None = None) -> list[Item]:
    """All items of a benchmark, or the first `limit`, in the owners' order. Ids of the request's `only` that match no
    picture are counted on stderr.

    Raises:
        ValueError: The files are of another layout, two items have one id, or no item is left.
        OSError: Files or pictures are missing.
    """
    path = local_path(request)
    folders = PictureFolders([*request.images, path if path.is_dir() else path.parent])
    items = list(request.benchmark.read(path, folders, request))
    if request.only is not None:
        items = _only(items, request.only)
    if not items:
        raise ValueError(f"{path} holds no question" + (f" on a picture of {request.only}." if request.only else "."))
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"{path}: two items have the id {item.id}.")
        seen.add(item.id)
    _require_pictures(items, folders)
    return items[:limit]


def _only(items: list[Item], file: Path) -> list[Item]:
    wanted = read_ids(file)
    present = {each for item in items for each in item.known_ids}
    if unmatched := [each for each in wanted if each not in present]:
        print(f"only: {unmatched_line(file, unmatched, wanted)}", file=sys.stderr)
    return [item for item in items if not wanted.keys().isdisjoint(item.known_ids)]


def _require_pictures(items: list[Item], folders: PictureFolders):
    names = {picture.name for item in items for picture in item.pictures}
    if missing := sorted(folders.missing[name][0] for name in names if name in folders.missing):
        raise FileNotFoundError(
            f"{len(missing)} of {len(names)} pictures are not there, the first is {missing[0]}. Looked in "
            f"{', '.join(folders.folders[:4])} and their sub-folders: name the folder with --images."
        )

"""The benchmarks: where each is read from, how it is asked and what it is scored by."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..items import Item, PictureFolders
from .captions import read_captions
from .heron import read_heron
from .jmmmu import read_jmmmu
from .own import read_own
from .questions import read_ja_vg_vqa, read_ja_vg_vqa_500, read_wild

OWN = "own"


@dataclass(frozen=True)
class Request:
    """What a user asked for with `--benchmark NAME[:PROTOCOL][=PATH]`.

    Args:
        name: A key of `KINDS`.
        protocol: One of the kind's protocols; the first by default.
        path: File or folder; `None` for the kind's data set on the Hub.
        images: Folders with pictures; that of `path` comes last.
        prompt: What captions are asked with.
        only: File with the image ids to keep.
    """

    name: str
    protocol: str
    path: Path | None
    images: tuple[str, ...] = ()
    prompt: str = ""
    only: Path | None = None

    @property
    def title(self) -> str:
        """Name of the benchmark's folder and of its scores: that of the file for one's own."""
        name = self.path.stem if self.name == OWN and self.path else self.name
        return f"{name}-{self.protocol}" if self.protocol else name


@dataclass(frozen=True)
class Kind:
    """One benchmark as such.

    Args:
        dataset: The owners' name of the data set.
        read: Reads it from a request, a local path and its picture folders.
        scoring: `captions`, `questions`, `choices` or `judge`.
        max_new_tokens: Longest answer, where the user says nothing.
        protocols: Ways of scoring that the field knows for it.
        hub: Its repository on the Hub, where the files that are read here are published there.
        task: Its name in llm-jp-eval-mm.
    """

    dataset: str
    read: Callable[[Request, Path, PictureFolders], Iterator[Item]]
    scoring: str
    max_new_tokens: int
    protocols: tuple[str, ...] = ("",)
    hub: str | None = None
    task: str | None = None


def _only(request: Request) -> set[str] | None:
    from ..contamination import image_ids

    return set(image_ids(request.only)) if request.only else None


KINDS: dict[str, Kind] = {
    "stair-captions": Kind(
        dataset="STAIR Captions v1.2 val",
        read=lambda request, path, folders: read_captions(path, folders, request.prompt, _only(request)),
        scoring="captions",
        max_new_tokens=64,
    ),
    "yj-captions": Kind(
        dataset="YJ Captions 26k",
        read=lambda request, path, folders: read_captions(path, folders, request.prompt, _only(request)),
        scoring="captions",
        max_new_tokens=64,
    ),
    "ja-vg-vqa": Kind(
        dataset="Japanese Visual Genome VQA",
        read=lambda request, path, folders: read_ja_vg_vqa(
            path, folders, request.protocol == "sakana", _only(request)
        ),
        scoring="questions",
        max_new_tokens=64,
        protocols=("sakana", "llm-jp"),
    ),
    "ja-vg-vqa-500": Kind(
        dataset="SakanaAI/JA-VG-VQA-500",
        read=lambda request, path, folders: read_ja_vg_vqa_500(path, request.protocol == "sakana"),
        scoring="questions",
        max_new_tokens=64,
        protocols=("sakana", "llm-jp"),
        hub="SakanaAI/JA-VG-VQA-500",
        task="ja-vg-vqa-500",
    ),
    "ja-vlm-bench-in-the-wild": Kind(
        dataset="SakanaAI/JA-VLM-Bench-In-the-Wild",
        read=lambda request, path, folders: read_wild(path),
        scoring="questions",
        max_new_tokens=256,
        protocols=("sakana", "llm-jp"),
        hub="SakanaAI/JA-VLM-Bench-In-the-Wild",
        task="ja-vlm-bench-in-the-wild",
    ),
    "heron-bench": Kind(
        dataset="turing-motors/Japanese-Heron-Bench",
        read=lambda request, path, folders: read_heron(path, folders),
        scoring="judge",
        max_new_tokens=256,
        hub="turing-motors/Japanese-Heron-Bench",
        task="japanese-heron-bench",
    ),
    "jmmmu": Kind(
        dataset="JMMMU/JMMMU",
        read=lambda request, path, folders: read_jmmmu(path),
        scoring="choices",
        max_new_tokens=256,
        hub="JMMMU/JMMMU",
        task="jmmmu",
    ),
    OWN: Kind(
        dataset="own",
        read=lambda request, path, folders: read_own(path, folders),
        scoring="questions",
        max_new_tokens=128,
        protocols=("",),
    ),
}


def parse_request(text: str, images: Sequence[str] = (), prompt: str = "", only: Path | None = None) -> Request:
    """`NAME[:PROTOCOL][=PATH]`, or the path of a JSON-lines file of one's own.

    Raises:
        ValueError: There is no such benchmark or protocol, or a path is needed.
        FileNotFoundError: The path does not exist.
    """
    head, separator, tail = text.partition("=")
    if not separator and (Path(text).suffix == ".jsonl" or Path(text).is_file()):
        head, tail = OWN, text
    name, _, protocol = head.partition(":")
    if name not in KINDS:
        raise ValueError(
            f"There is no benchmark {name!r}: choose one of {', '.join(KINDS)}, as NAME[:PROTOCOL][=PATH], or name a "
            ".jsonl file."
        )
    kind = KINDS[name]
    protocol = protocol or kind.protocols[0]
    if protocol not in kind.protocols:
        known = ", ".join(kind.protocols) if kind.protocols != ("",) else "none"
        raise ValueError(f"{name} has no protocol {protocol!r}; it has {known}.")
    if not tail and kind.hub is None:
        raise ValueError(f"{name} is not read from the Hub: name its file, --benchmark {head}=PATH.")
    path = Path(tail) if tail else None
    if path is not None and not path.exists() and not _looks_like_hub(tail):
        raise FileNotFoundError(f"{path} does not exist.")
    return Request(name, protocol, path, tuple(images), prompt, only)


def _looks_like_hub(text: str) -> bool:
    return text.count("/") == 1 and not text.startswith((".", "/", "~"))


def local_path(request: Request) -> Path:
    """Where the benchmark lies on this machine; downloaded from the Hub where that is asked for.

    Raises:
        OSError: The Hub cannot be reached.
    """
    if request.path is not None and request.path.exists():
        return request.path
    from huggingface_hub import snapshot_download

    repository = request.path.as_posix() if request.path is not None else KINDS[request.name].hub
    patterns = ["*.parquet", "*.jsonl", "*.json", "images/*"]
    return Path(snapshot_download(str(repository), repo_type="dataset", allow_patterns=patterns))


def read_items(request: Request, limit: int | None = None) -> list[Item]:
    """All items of a benchmark, or the first `limit`, in the owners' order.

    Raises:
        ValueError: The files are of another layout, or two items have one id.
        OSError: Files are missing.
    """
    path = local_path(request)
    folders = PictureFolders([*request.images, path if path.is_dir() else path.parent])
    items = list(KINDS[request.name].read(request, path, folders))
    seen: set[str] = set()
    for item in items:
        if item.id in seen:
            raise ValueError(f"{path}: two items have the id {item.id}.")
        seen.add(item.id)
    return items[:limit]
